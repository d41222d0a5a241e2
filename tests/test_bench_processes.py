"Calls in other processes: their results, their memory, their errors; times of calls"
import torch, pytest
from a3t.bench import processes
from a3t.bench.processes import best_seconds, family_memory, machine_peak, resident_memory, run_apart

def _fill(n): return dict(sum=float(torch.ones(n).sum()))

def test_the_peak_is_that_of_the_other_process():
    ballast = torch.ones(2**28) # 1 GB here
    small, large = run_apart(_fill, 10), run_apart(_fill, 2**27)
    assert resident_memory(peak=True) >= resident_memory() > ballast.nbytes and small['sum'] == 10
    assert .45 < (large['peak'] - small['peak'])/2**30 < .7 and small['peak'] < ballast.nbytes

def test_memory_of_a_family():
    res = run_apart(_fill, 2**20, threads=1, family=True)
    assert res['sum'] == 2**20 and 0 < res['memory'] < 2*res['peak']
    assert family_memory(2**30) == 0 # no such process

def _fails(): raise KeyError('gone')

def test_errors_come_back():
    with pytest.raises(KeyError, match='gone'): run_apart(_fails)

def test_times(monkeypatch):
    calls = []
    assert 0 <= best_seconds(lambda: calls.append(1), 5) < 1 and len(calls) == 6
    monkeypatch.setattr(processes, 'SHAPES', [(8, 8, 8)])
    assert all(r > 0 for r in machine_peak(torch.float32).values())
