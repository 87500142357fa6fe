"""Balance at run time: which rank holds which experts, what was measured, and what changes for it.

Programs name a layer's experts by the rule `placed+NUMBER+SPARE` of the part that cuts them; the ranks
and weights behind it follow a table, so that a change of the table changes no program.
"""

from __future__ import annotations

from plancc.runtime.balance.paces import Paces, PacesUsed, is_loaded
from plancc.runtime.balance.tables import Key, Table, Tables, is_placed, key_of

__all__ = ["Key", "Paces", "PacesUsed", "Table", "Tables", "is_loaded", "is_placed", "key_of"]
