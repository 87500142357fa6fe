"""`python -m plancc.dsl` rewrites what is generated: plan.table.json, tables of REFERENCE.md."""

from plancc.dsl.grammar import TABLE, table_text
from plancc.dsl.tables import REFERENCE, filled

TABLE.write_text(table_text(), "utf-8")
REFERENCE.write_text(filled(REFERENCE.read_text("utf-8")), "utf-8")
