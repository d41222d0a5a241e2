"The page of the evidence lists all of it, and nothing else"
import re
from fnmatch import fnmatch
from a3t.files import results_folder

def listed():
    "Names in the first column of the table; a bare name belongs to the folder of the name before it"
    names = []
    for line in (results_folder()/'README.md').read_text(encoding='utf-8').splitlines():
        found = re.findall(r'`([^`]+)`', line.split('|')[1]) if line.startswith('| `') else []
        folder = found[0].rpartition('/')[0] if found and not found[0].endswith('/') else ''
        names += [n if '/' in n or not folder else f'{folder}/{n}' for n in found]
    return [n.rstrip('/') for n in names]

def test_every_file_is_listed():
    root, names = results_folder(), listed()
    for p in root.rglob('*'):
        path = p.relative_to(root)
        parents = [str(path), *map(str, path.parents)]
        assert p.is_dir() or path.name == 'README.md' or any(fnmatch(x, n) for x in parents for n in names), path

def test_everything_listed_is_there():
    for name in listed(): assert list(results_folder().glob(name)), name
