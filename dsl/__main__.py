"""`python -m plancc.dsl` rewrites what is generated: plan.table.json, tables of REFERENCE.md."""

from plancc.dsl.grammar import TABLE, table_text

TABLE.write_text(table_text(), "utf-8")
