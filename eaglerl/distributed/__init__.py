"""Work on several machines, as tasks of Ray; it needs the extra ``ray``."""
