"""The drawings of the course, made by code: `drawings.attention.one_query(...)` at the end of a cell shows one."""
