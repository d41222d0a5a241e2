"""What a wheel holds beside the code: `a3t/project` mirrors the files of the checkout that the package reads

`a3t.files.shipped_folder` finds them. The checkout's own files are the only source; pyproject.toml names this class.
"""
from pathlib import Path
from setuptools.command.build_py import build_py

SHIPPED = ('settings.ini', 'data/results/paper.json', 'nbs/stages/*.ipynb')

class BuildWithProject(build_py):
    "setuptools' step that collects the package, and the shipped files of the project"
    def _shipped(self): return sorted(p.as_posix() for pattern in SHIPPED for p in Path().glob(pattern))

    def run(self):
        super().run()
        if self.editable_mode: return # an editable install reads the checkout itself
        for path in self._shipped():
            to = Path(self.build_lib, 'a3t', 'project', path)
            self.mkpath(str(to.parent))
            self.copy_file(path, str(to))

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [f'{self.build_lib}/a3t/project/{p}' for p in self._shipped()]

    def get_source_files(self): # for the source distribution, from which others build wheels
        return [*super().get_source_files(), 'nbs/wheel.py', *self._shipped()]
