"""Training data: text files in, the rows of global batches out; the same under every plan."""

from plancc.runtime.data.batches import Batches
from plancc.runtime.data.corpus import Corpus, open_corpus
from plancc.runtime.data.files import DataError
from plancc.runtime.data.state import merge_states
from plancc.runtime.data.tokens import ByteTokens, FolderTokens, Tokens, check_vocabulary

__all__ = [
    "Batches",
    "ByteTokens",
    "Corpus",
    "DataError",
    "FolderTokens",
    "Tokens",
    "check_vocabulary",
    "merge_states",
    "open_corpus",
]
