#!/usr/bin/env python3
"""A program that looks like vLLM from outside: `vllm_stub.py serve FOLDER --port N …`

The seed 666 ends it, like a GPU without memory; so does the start, while the file in STUB_BROKEN exists. It gets ready
after STUB_START seconds, and each answer takes STUB_ANSWER seconds. What it was called with, and its process ids, go to
the file in STUB_LOG."""
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def flag(name): return sys.argv[sys.argv.index(name) + 1]

NAME, MODELS = flag('--served-model-name'), [flag('--served-model-name')]

def note(**facts):
    if path := os.environ.get('STUB_LOG'):
        with open(path, 'a') as f: f.write(json.dumps(facts) + '\n')

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def answer(self, status, content):
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def allowed(self):
        if self.headers['Authorization'] == f"Bearer {os.environ['VLLM_API_KEY']}": return True
        self.answer(401, dict(error='Unauthorized'))

    def do_GET(self):
        if self.path == '/health': return self.answer(200, {})
        if self.allowed(): self.answer(200, dict(data=[dict(id=m, owned_by='vllm') for m in MODELS]))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        if not self.allowed(): return
        if self.path == '/v1/load_lora_adapter':
            note(loaded=body['lora_name'])
            MODELS.append(body['lora_name'])
            return self.answer(200, {})
        if body['model'] not in MODELS: return self.answer(404, dict(error=f"The model {body['model']} does not exist"))
        prompt = ''.join(map(chr, body['prompt'])) if isinstance(body['prompt'], list) else body['prompt']
        if body['seed'] == 666:
            note(died=True)
            print('torch.OutOfMemoryError: CUDA out of memory.', flush=True)
            os._exit(1)
        time.sleep(float(os.environ.get('STUB_ANSWER', 0)))
        text = ' go to drawer 1'
        choice = dict(index=0, text=text, finish_reason='stop', stop_reason=None, token_ids=[1, 2],
                      logprobs=dict(token_logprobs=[-1., -2.]))
        self.answer(200, dict(choices=[choice], usage=dict(prompt_tokens=len(prompt), completion_tokens=2)))

if os.path.exists(os.environ.get('STUB_BROKEN', '')):
    print('INFO starting', 'ValueError: max_model_len is greater than the model allows', sep='\n')
    sys.exit(1)
worker = subprocess.Popen(['sleep', '600']) # such as vLLM's engine core
note(arguments=sys.argv[1:], pids=[os.getpid(), worker.pid], key=os.environ['VLLM_API_KEY'])
time.sleep(float(os.environ.get('STUB_START', 0)))
ThreadingHTTPServer((flag('--host'), int(flag('--port'))), Handler).serve_forever()
