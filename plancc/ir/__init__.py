"""The intermediate forms between plan and program: graph, shapes, layouts, RankProgram."""
