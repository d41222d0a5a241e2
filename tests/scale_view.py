"""How long `a3t view` takes with many trajectories: python tests/scale_view.py [TRAJECTORIES] [FOLDER]

Takes the committed AlfWorld trajectories again and again (100,000 by default), each with a goal of its own, in files of
2,000. Prints seconds of the clock and of the processor for the start, the first page, and pages that need more."""
import subprocess, sys, tempfile, time, urllib.request
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
import psutil
from fastcore.basics import chunked
from a3t.accumulate import append, stores, stream
from a3t.files import results_folder

def fill(folder, n):
    "A store of `n` trajectories"
    some = [t for s in stores(results_folder()/'cpu-alfworld') for t in stream(s)]
    other = lambda i, t: replace(t, goal=f'{t.goal} variant {i}', task=f'{t.task}-{i//len(some)}', round=i % 4)
    for part in chunked((other(i, t) for i,t in enumerate(islice(cycle(some), n))), 2000): append(folder, part)

def measure(folder):
    "Start the command and open pages"
    code = f'import sys; from a3t.cli import main; sys.exit(main(["view", {str(folder)!r}]))'
    begin = time.perf_counter()
    server = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    used = psutil.Process(server.pid)
    def tell(name, begin, before):
        spent = sum(used.cpu_times()[:2])
        print(f'{name:<44} {time.perf_counter() - begin:6.2f} s, processor {spent - before:6.2f} s', flush=True)
    try:
        url = server.stdout.readline().split()[1].rstrip('/')
        tell('start, until the address is printed', begin, 0)
        for name,path in (('first page', '/'), ('page 1,001', '/?first=50000'), ('lost in round 3', '/?won=no&round=3'),
                          ('some actions sampled', '/?acted=sampled'), ('a text in 1 of them', '/?q=variant+77777'),
                          ('a text in many', '/?q=desklamp'), ('the same text, next page', '/?q=desklamp&first=50'),
                          ('an episode', f'/episode?at={folder.name}:{77_777 % 2000}')):
            start, before = time.perf_counter(), sum(used.cpu_times()[:2])
            size = len(urllib.request.urlopen(url + path).read())
            tell(f'{name} ({size//1000} kB)', start, before)
        print(f'memory {used.memory_info().rss/2**20:.0f} MB')
    finally: server.kill()

if __name__ == '__main__':
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else tmp)/'store'
        if not folder.exists(): fill(folder, n)
        measure(folder)
