"""Recognise attention."""
def recognise_attention(graph): return graph
