"""The verbs of the suite: prepare, train, reproduce, tables, figures. Thin: they parse, call src/stn, and print."""
