"""What the data preparation steps share: blends, sources, rows, plans, shards that survive a kill, and writers.

A step reads a blend (``blend``), finds its files (``sources``), cuts them into shards (``plan``), lets worker processes
or Ray tasks (``launch``) make the shards (``shards``) from rows (``rows``), and says which shard belongs to which split
(``splits``). ``runs`` puts that together.
"""
