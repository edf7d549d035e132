"""The recipe of a run: its schema, its faults in words, its plan, and the stages that carry it out."""
