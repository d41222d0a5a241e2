"""The index at the size of the whole catalogue: python tests/scale_webshop_search.py [PRODUCTS] [FOLDER]

Builds an index of made-up products (1.18 million by default, about 20 minutes). Prints the time to build it, its size
on disk, the time of a query, and the memory of several processes that search in it."""
import json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from a3t.envs.webshop.search import Index, build_index

# different words, and words in a product's text; the real 1,000 products have 12,000 and about 150
WORDS, LENGTH = 1_500_000, 150

def texts(n, rng, block=10_000):
    "Made-up products: the word of rank r is as common as 1/r, with everyday words in front"
    front = ('women men size color black white pack set for with home kitchen cotton soft easy clean machine washable '
             'high quality steel wood').split()
    name = lambda r: front[r] if r < len(front) else f'w{r}'
    known = [name(r) for r in range(200_000)]
    for start in range(0, n, block):
        ranks = (WORDS**rng.random((min(block, n - start), LENGTH))).astype(int) - 1
        for i, row in enumerate(ranks):
            yield f'P{start + i:09}', ' '.join([known[r] if r < len(known) else name(r) for r in row])

def queries(n, rng):
    return [t for _,t in ((i, ' '.join(t.split()[:k])) for (i, t), k in zip(texts(n, rng), rng.integers(1, 25, n)))]

def memory():
    "Resident and proportional memory of this process, in MB"
    rollup = Path('/proc/self/smaps_rollup').read_text(encoding='utf-8')
    return {k:int(next(l for l in rollup.splitlines() if l.startswith(f'{k}:')).split()[1])//1024
            for k in ('Rss', 'Pss', 'Private_Dirty')}

def ask(folder):
    t = time.perf_counter()
    index = Index(folder)
    opened, times = time.perf_counter() - t, []
    for q in queries(300, np.random.default_rng(1)):
        t = time.perf_counter()
        index.search(q)
        times.append(1000*(time.perf_counter() - t))
    return dict(open_ms=round(1000*opened, 1), median_ms=round(float(np.median(times)), 2),
                p95_ms=round(float(np.percentile(times, 95)), 2), worst_ms=round(max(times), 1), memory_mb=memory())

if __name__ == '__main__':
    if sys.argv[1:2] == ['ask']: print(json.dumps(ask(sys.argv[2]))); sys.exit()
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_180_000
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())/f'index-{n}'
    if not (folder/'index.json').exists():
        wall, cpu = time.time(), time.process_time()
        build_index(texts(n, np.random.default_rng(0)), folder)
        print(f'build: {time.process_time() - cpu:.0f} s of one core ({time.time() - wall:.0f} s on the clock), at '
              f'most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024:,} MB of memory')
    print(Index(folder), f"{sum(f.stat().st_size for f in folder.iterdir())/2**20:,.0f} MB on disk")
    env = {**os.environ, 'PYTHONPATH':str(Path(__file__).resolve().parents[1])}
    for k in (1, 2):
        for p in [subprocess.Popen([sys.executable, __file__, 'ask', folder], stdout=subprocess.PIPE, encoding='utf-8',
                                   env=env) for _ in range(k)]:
            print(f'{k} process(es):', p.communicate()[0].strip())
