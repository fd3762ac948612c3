declare const __REPOSITORY__: string; // the address of the repository, out of pyproject.toml
declare const __NOTEBOOKS__: string; // the address of a notebook, with NAME in the place of its name
