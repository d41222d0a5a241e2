"Trainings in a process of their own: `train_toy.py toy FOLDER OUTPUT EPOCHS`, `… peak TOKENS THREADS CHECKPOINTING`"
import json, random, sys, tempfile
from dataclasses import replace
import torch
import a3t.train
from a3t.bench.processes import resident_memory
from a3t.bench.training import LORA
from a3t.data import Row, make_rows
from a3t.envs.base import ToyHouse
from a3t.models.weights import load_model

def toy(folder, output, epochs):
    "Train a tiny model on three episodes: the hash of the adapter"
    torch.set_num_threads(1)
    model, tok = load_model(folder, device='cpu', dtype=torch.float32)
    won = ToyHouse.exemplar
    lost = replace(won, won=False, steps=won.steps[:1])
    rows, _ = make_rows(tok, [won, replace(won, steps=won.steps[1:]), lost])
    return a3t.train.train(model, rows, output, epochs=int(epochs), batch_size=1, lora_rank=4,
                           learning_rate=1e-3, contrast_floor=-5., gradient_checkpointing=False)['adapter_hash']

def peak(tokens, threads, checkpointing):
    "Train SmolLM2 on long rows of random tokens: the predicted memory and the peak, as JSON"
    tokens, threads, checkpointing = int(tokens), int(threads), int(checkpointing)
    torch.set_num_threads(threads)
    plans, predict, rng = [], a3t.train.predict_memory, random.Random(0)
    a3t.train.predict_memory = lambda *a: plans.append(predict(*a)) or plans[-1]
    def row():
        ids = tuple(rng.randrange(1000, 40000) for _ in range(tokens))
        return Row(ids, (False,)*20 + tuple(rng.random() < .5 for _ in range(tokens-20)), 1., 't', True)
    model, tok = load_model()
    with tempfile.TemporaryDirectory() as d:
        a3t.train.train(model, [row() for _ in range(2*threads)], d, epochs=1, batch_size=threads, progress='x',
                        target_modules=LORA['target_modules'], gradient_checkpointing=bool(checkpointing))
    return json.dumps(dict(plan=plans[0], peak=resident_memory(peak=True)))

if __name__ == '__main__': print({'toy':toy, 'peak':peak}[sys.argv[1]](*sys.argv[2:]))
