import asyncio, gc, json, pickle, subprocess, sys, threading, time, warnings
import httpx, pytest, torch
from a3t.agents import ActRe, ReAct, rollout
from a3t.compose import compose_all
from a3t.core import A3TError
from a3t.settings import load_settings
from a3t.envs.base import load
from a3t.models.network import proxy_for
from a3t.models.responses import Refused
from a3t.models.server import ServerModel
from a3t.models.toyserver import ToyServer
from a3t.models.address import api_key, split_address
from a3t.models.api import language_model, load_tokenizer, model_arguments, read_choice, without_echo
from a3t.models.base import ContextFull, encode_segments, gather
from a3t.models.thoughts import without_thoughts
from a3t.models.local import LocalModel
from a3t.models.weights import find_gguf, load_model, tiny_model
from a3t.runs.cluster import LoadedThere

torch.set_num_threads(1)
MOVE = 'act[look]'

@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for k in ('A3T_API_KEY', 'OPENAI_API_KEY'): monkeypatch.delenv(k, raising=False)

def model(toy, **kw): return ServerModel(f'{toy.url}#toy', **{'pause':.01, **kw})

def complete(lm, prompts=('Task',), **kw): return gather([lm.complete(p, **kw) for p in prompts], limit=None)

# ---- a real server: llama.cpp's, with the embedded model

SERVE = '''
import os, sys, threading
import xllamacpp as llama
p = llama.CommonParams()
p.model.path, p.model_alias, p.port = sys.argv[1], {'smollm2-135m'}, int(sys.argv[2])
p.n_ctx, p.n_parallel, p.cpuparams.n_threads, p.cpuparams_batch.n_threads = 8192, 4, 1, 1
server = llama.Server(p)
print('at', server.listening_address, flush=True)
sys.stdin.read() # until the test is over
os._exit(0)
'''

def serve(port=0):
    "Start the server in a process of its own; (process, URL)"
    if not port:
        import socket
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
    p = subprocess.Popen([sys.executable, '-c', SERVE, str(find_gguf()), str(port)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in p.stdout:
        if line.startswith('at '): break
    else: raise AssertionError('the server did not start: is xllamacpp installed (pip install -e .[dev])?')
    threading.Thread(target=p.stdout.read, daemon=True).start()
    return p, f'http://127.0.0.1:{port}/v1'

@pytest.fixture(scope='module')
def llama():
    p, url = serve()
    yield url
    p.kill(); p.wait()

PROMPTS = ['The capital of France is', 'Once upon a time, in a small kitchen,', '1, 2, 3, 4,',
           'A list of fruits:\n- apple\n-', 'You are in a room. On the desk 1, you see a mug 1. > ']

def test_a_server_answers_like_the_local_model(llama):
    "llama.cpp computes with 8-bit activations, we in fp32: the same up to that"
    lm, local = language_model(f'{llama}#smollm2-135m'), LocalModel(*load_model('smollm2-135m', device='cpu',
                                                                                dtype=torch.float32))
    there, here = complete(lm, PROMPTS, max_tokens=8), complete(local, PROMPTS, max_tokens=8)
    same = 0
    for a,b in zip(there, here):
        assert a.prompt_tokens == b.prompt_tokens and len(a.token_ids) == len(a.logprobs) == 8 and a.finish == 'length'
        assert lm.tokenizer.decode(a.token_ids) == a.text
        n = next((i for i,(x, y) in enumerate(zip(a.token_ids, b.token_ids)) if x != y), 8)
        same += n
        assert all(abs(x - y) < .35 for x,y in zip(a.logprobs[:n], b.logprobs[:n])), (a, b)
    assert same >= 20, (there, here)

def test_segments_reach_the_server_as_tokens(llama):
    lm = language_model(f'{llama}#smollm2-135m')
    odd = ['The capi', 'tal of Fr', 'ance is'] # other tokens than the joined text has
    assert encode_segments(lm.tokenizer, odd) != encode_segments(lm.tokenizer, ''.join(odd))
    assert complete(lm, [odd], max_tokens=1)[0].prompt_tokens == len(encode_segments(lm.tokenizer, odd))
    text = ServerModel(f'{llama}#') # no name: the only model; no tokenizer: text
    assert complete(text, [odd], max_tokens=1)[0].prompt_tokens == len(encode_segments(lm.tokenizer, ''.join(odd)))
    assert text.name == 'smollm2-135m'

def test_stop_and_seed(llama):
    lm = language_model(f'{llama}#smollm2-135m')
    c, = complete(lm, ['1, 2, 3,'], max_tokens=12, stop=(' 6',))
    assert (c.text, c.finish) == (' 4, 5,', 'stop')
    ask = lambda seed: complete(lm, ['Once upon a time'], max_tokens=12, temperature=1., seed=seed)[0].text
    assert len({ask(s) for s in range(3)}) > 1 and ask(1) == ask(1)

def test_episodes_on_a_server(llama):
    lm, env = language_model(f'{llama}#smollm2-135m'), load(max_steps=3)
    tasks = env.tasks('train')[:4]
    policy = ReAct(lm, env.instruction, env.exemplar, max_tokens=16)
    done = rollout(lambda: load(max_steps=3), tasks, policy, limit=4, processes=lm.processes)
    assert [t.task for t in done] == tasks and all(len(t) for t in done)
    assert lm.stats['requests'] == 1 + sum(map(len, done)) # one look, and one request a step
    assert lm.stats['cached_tokens'] > .3*lm.stats['prompt_tokens'] # a step's prompt begins with the one before
    actre = ActRe(lm, env.exemplar, max_tokens=12)
    made = compose_all(lambda: load(max_steps=2), tasks[:2], policy, actre, most=1, p=1., limit=2)
    assert all(s.actor == 'sampled' for t in made for s in t.steps) and any(s.reason for t in made for s in t.steps)

def test_a_chat_model(llama):
    c, = complete(ServerModel(f'{llama}/chat/completions#smollm2-135m'),
                  ['Task: find a mug.\nact[go to desk 1] think['], stop=('\n',), max_tokens=8)
    assert c.text and (c.token_ids, c.logprobs) == ([], []) and c.prompt_tokens > 10

def test_what_llama_cpp_cannot(llama):
    lm = language_model(f'{llama}#smollm2-135m')
    with pytest.raises(A3TError, match='does not score'): gather([lm.score('go to', [' desk', ' drawer'])])
    with pytest.raises(A3TError, match='refuses .400.*context'): complete(lm, ['desk '*4000], max_tokens=4)
    env = load(max_steps=3)
    grounded = ActRe(lm, env.exemplar, grounded=env, max_tokens=12)
    with pytest.raises(A3TError, match='actre = base'):
        compose_all(lambda: load(max_steps=6), env.tasks('train')[:3], None, grounded, most=2, p=1.)

def test_killed_in_mid_run():
    p, url = serve()
    lm = ServerModel(f'{url}#smollm2-135m', pause=.01, attempts=3)
    async def kill():
        while lm.stats['requests'] < 3: await asyncio.sleep(.01)
        p.kill(); p.wait()
        return 'killed'
    async def play():
        for i in range(200): await lm.complete(f'{i}, {i + 1},', max_tokens=8)
    with pytest.raises(A3TError, match='can no longer be reached, 3 times.*finished work is kept'):
        gather([play(), play(), kill()])
    assert p.returncode is not None and 3 <= lm.stats['requests'] < 400

# ---- failures

@pytest.mark.parametrize('trouble',
                         [[500], [502, 503, 504], [529], [(429, {'Retry-After':'0'})], [408], ['cut'], ['garbage'],
                          ['cut', 500, 'garbage', 429]])
def test_failures_that_pass(trouble):
    with ToyServer(lambda b: MOVE, trouble) as toy:
        lm = model(toy)
        assert complete(lm)[0].text == MOVE
    assert lm.stats['retries'] == len(trouble) and lm.stats['requests'] == 2
    assert len(toy.requests) == len(trouble) + 1

@pytest.mark.parametrize('trouble,says', [(500, '500'), ('cut', 'the connection broke'), ('garbage', 'not JSON')])
def test_failures_that_stay(trouble, says):
    with ToyServer(lambda b: MOVE, [trouble]*10) as toy:
        with pytest.raises(A3TError, match=f'{says}.*4 times; look at its log'): complete(model(toy, attempts=4))
    assert len(toy.requests) == 4

@pytest.mark.parametrize('res', [{}, dict(choices=[]), dict(choices=None), [1]])
def test_an_answer_without_choices(res):
    with ToyServer(lambda b: res) as toy:
        with pytest.raises(A3TError, match='no choices'): complete(model(toy, attempts=2))

@pytest.mark.parametrize('status,says',
                         [(400, 'change the request'), (401, 'A3T_API_KEY'), (402, 'money'),
                          (404, r'choose one of its models \(toy\)'), (302, '302')])
def test_final_failures(status, says):
    with ToyServer(lambda b: MOVE, [(status, {'Location':'http://127.0.0.1:9/elsewhere'})]*3) as toy:
        with pytest.raises(Refused, match=says): complete(model(toy))
    assert len(toy.requests) == 1

def test_no_money_left_is_final():
    class Poor(ToyServer):
        def send(self, handler, status, content, headers={}, cut=False):
            if status == 429:
                content = dict(error=dict(message='You exceeded your current quota', code='insufficient_quota'))
            super().send(handler, status, content, headers, cut)
    with Poor(lambda b: MOVE, [429]*5) as toy:
        with pytest.raises(Refused, match='money on the account'): complete(model(toy))
    assert len(toy.requests) == 1

def test_retry_after_is_obeyed():
    with ToyServer(lambda b: MOVE, [(429, {'Retry-After':'0.4'})]) as toy:
        start = time.monotonic()
        complete(model(toy))
        assert time.monotonic() - start >= .4
    with ToyServer(lambda b: MOVE, [(503, {'Retry-After':'900'})]) as toy:
        with pytest.raises(A3TError, match='asks for a pause of 900 seconds; .*raise patience'): complete(model(toy))
    assert len(toy.requests) == 1

def test_a_server_that_hangs():
    with ToyServer(lambda b: MOVE, [5.]) as toy: assert complete(model(toy, timeout=.3))[0].text == MOVE
    with ToyServer(lambda b: MOVE, [5.]*3) as toy:
        start = time.monotonic()
        with pytest.raises(A3TError, match='no answer within 0.2 seconds, 2 times; .*raise timeout'):
            complete(model(toy, timeout=.2, attempts=2))
        assert time.monotonic() - start < 3

@pytest.mark.parametrize('trouble,why', [(2., 'no answer yet'), ((503, {'Retry-After':'1'}), 'it answers 503')])
def test_a_wait_for_a_server_is_told_once(trouble, why, monkeypatch, capsys):
    monkeypatch.setattr('a3t.models.server.PATIENT', .3)
    with ToyServer(lambda body: MOVE, [trouble]*4) as toy, pytest.raises(A3TError):
        complete(model(toy, timeout=.5, attempts=2), ['Task', 'Task'])
    told, = capsys.readouterr().err.splitlines()
    assert told.startswith(f'waiting for the server {toy.url} (/completions): {why}') and 'each of 2 attempts' in told

def test_a_dead_server_fails_at_once():
    with ToyServer(lambda b: MOVE) as toy: pass
    start = time.monotonic()
    with pytest.raises(A3TError, match='nobody answers there'): complete(model(toy, pause=10.))
    assert time.monotonic() - start < 3

def test_a_server_that_comes_back():
    "The port is closed for a while, then open again"
    with ToyServer(lambda b: MOVE) as toy:
        lm = model(toy, pause=.05, patience=.2, attempts=400)
        complete(lm)
        toy.__exit__()
        async def restart():
            while not lm.stats['retries']: await asyncio.sleep(.01)
            toy.server = type(toy.server)(toy.server.server_address, toy.server.RequestHandlerClass)
            threading.Thread(target=toy.server.serve_forever, daemon=True).start()
        assert gather([lm.complete('Task'), restart()])[0].text == MOVE
    assert lm.stats['retries'] > 0

def test_a_broken_server_ends_the_run_and_loses_no_episode():
    "The error leaves rollout; no trajectory is invented"
    env = load(max_steps=6)
    with ToyServer(lambda b: MOVE, ['']*5 + [500]*100) as toy:
        with pytest.raises(A3TError, match='it answers 500'):
            rollout(lambda: load(max_steps=6), env.tasks('train')[:4], ReAct(model(toy, attempts=2)))

# ---- limits, event loops, accounting

def test_limit():
    for limit in (3, 12):
        now, most = [0], [0]
        lock, together = threading.Lock(), threading.Barrier(limit, timeout=60)
        def slow(body):
            with lock: now[0] += 1; most[0] = max(most[0], now[0])
            together.wait() # exactly as many as the limit allows
            with lock: now[0] -= 1
            return MOVE
        with ToyServer(slow) as toy: complete(model(toy, limit=limit), ['Task']*12)
        assert most[0] == limit

def test_a_request_that_waits_for_a_retry_delays_no_other():
    with ToyServer(lambda b: MOVE, [(429, {'Retry-After':'0.5'})]) as toy:
        lm, ends = model(toy, limit=1), []
        async def one(i):
            await lm.complete('Task')
            ends.append(i)
        gather([one(i) for i in range(4)])
    assert sorted(ends[:3]) != [0, 1, 2] and len(ends) == 4

def test_loops_come_and_go():
    with ToyServer(lambda b: MOVE) as toy, warnings.catch_warnings():
        warnings.simplefilter('error')
        lm = model(toy)
        for _ in range(3): complete(lm, ['Task']*4)
        async def inside(): return complete(lm) # a loop in its own thread, beside a running loop
        asyncio.run(inside())
        assert len(lm.sessions) == 1
        gc.collect()
    assert lm.stats['requests'] == 1 + 13 # the look at the server is not repeated

def test_accounting():
    usage = dict(prompt_tokens=1000, completion_tokens=10, prompt_tokens_details=dict(cached_tokens=600))
    answers = iter([dict(choices=[dict(text=MOVE, finish_reason='stop')], usage=usage)]*4
                   + [dict(choices=[dict(text=MOVE, finish_reason='stop')])])
    with ToyServer(lambda b: next(answers), ['cut']) as toy:
        lm = model(toy, price=(2., 10.))
        complete(lm.adapter(), ['Task']*3) # the half answer is not counted; another view counts into the same account
        complete(lm)
    assert lm.stats == dict(requests=5, retries=1, prompt_tokens=3000, cached_tokens=1800, completion_tokens=30,
                            unmetered=1, cost=pytest.approx(.0063))

# ---- keys

KEY = 'sk-test-0123456789abcdef'

def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv('A3T_API_KEY', KEY)
    with ToyServer(lambda b: MOVE, ['', 400, 500]) as toy:
        lm = model(toy, attempts=1)
        complete(lm)
        assert toy.requests[0][2]['Authorization'] == f'Bearer {KEY}'
        for error in (Refused, A3TError): # the toy server repeats the key in its message
            with pytest.raises(error) as e: complete(lm)
            import traceback
            assert 'failure' in str(e.value) and KEY not in ''.join(traceback.format_exception(e.value))
        state = {k:v for k,v in vars(lm).items() if k != 'sessions'}
        assert KEY not in repr(lm) + repr(vars(lm)) and KEY.encode() not in pickle.dumps(state)
        assert KEY not in json.dumps(toy.requests[0][1])
    assert KEY not in ''.join(capfd.readouterr())

def test_a_key_of_openai_stays_with_openai(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with ToyServer(lambda b: MOVE) as toy: complete(model(toy))
    assert 'Authorization' not in toy.requests[0][2]
    assert api_key('https://api.openai.com/v1') == KEY

def test_keys_in_the_wrong_place(monkeypatch):
    for bad in ('http://user:pass@host/v1#m', 'https://host/v1?key=abc#m'):
        with pytest.raises(A3TError, match='into the environment') as e: ServerModel(bad)
        assert 'pass@' not in str(e.value) and 'abc' not in str(e.value)
    with pytest.raises(A3TError, match='into the environment'): ServerModel('http://host/v1#m', api_key=KEY)
    monkeypatch.setenv('A3T_API_KEY', 'ключ')
    with pytest.raises(A3TError, match='A3T_API_KEY holds characters'), ToyServer(lambda b: MOVE) as toy:
        complete(model(toy))

# ---- forms

def test_choices():
    vllm = dict(text='go', token_ids=[5, 6], logprobs=dict(tokens=['g', 'o'], token_logprobs=[-1., -2.]),
                finish_reason='stop')
    assert read_choice(dict(vllm, stop_reason='\n'), ('\n',)) == ('go', [5, 6], [-1., -2.], 'stop')
    assert read_choice(dict(vllm, stop_reason=None), ('\n',)) == ('go', [5, 6], [-1., -2.], 'end')
    assert read_choice(dict(vllm, finish_reason='length'), ('\n',))[3] == 'length'
    # a server without stop strings
    assert read_choice(dict(text='go\nand on', finish_reason='length'), ('\n',)) == ('go', [], [], 'stop')
    assert read_choice(dict(text=None, finish_reason='stop'), ()) == ('', [], [], 'end')

def test_without_echo():
    prompt = 'Task: x\nact[look] think['
    for text in ('act[look] think[I see.]', 'think[I see.]', 'I see.]'): assert without_echo(text, prompt) == 'I see.]'
    assert without_echo('act[look]', 'Task: x\n') == 'act[look]'

def test_only_known_servers_get_their_own_fields(tmp_path):
    tok = load_tokenizer(tiny_model(tmp_path/'m'))
    for owner,own in (('vllm', True), ('llamacpp', True), ('somebody', False)):
        with ToyServer(lambda b: MOVE, owner=owner) as toy:
            complete(model(toy, tokenizer=tok, stop=None, user='me'), stop=('\n',))
        body = toy.requests[0][1]
        assert ('top_k' in body) == own and isinstance(body['prompt'],
            list) == own and body['top_p'] == 1. and body['user'] == 'me' and 'stop' not in body

def test_which_model():
    with ToyServer(lambda b: MOVE, models=('a', 'b')) as toy:
        with pytest.raises(A3TError, match=r'has 2 models \(a, b\)'): complete(ServerModel(toy.url))
    for bad in ('ftp://host/v1#m', 'http:///v1#m'):
        with pytest.raises(A3TError, match='begins with http'): split_address(bad)

def test_invalid_requests():
    with ToyServer(lambda b: MOVE) as toy:
        lm = model(toy)
        with pytest.raises(A3TError, match='empty'): complete(lm, [''])
        assert complete(lm, max_tokens=0)[0].finish == 'length' and gather([lm.score('x', [])]) == [[]]
        with pytest.raises(A3TError, match='chat model returns no scores'):
            gather([ServerModel(f'{toy.url}/chat/completions#toy').score('x', ['y'])])
    assert not toy.requests

# ---- a failure inside an answer: never an empty action

def chat(toy, **kw): return ServerModel(f'{toy.url}/chat/completions#toy', **{'pause':.01, 'attempts':3, **kw})

def said(content, finish='stop', tokens=None, message={}, **choice):
    "A chat model's answer"
    return dict(choices=[dict(dict(index=0, message=dict(content=content, **message), finish_reason=finish), **choice)],
                **({} if tokens is None else dict(usage=dict(completion_tokens=tokens))))

BUSY = dict(code=502, message='the provider is gone')
PASSING = [(said('', 'error', error=BUSY), 'the provider is gone'),
           (said(None, 'error', error='the provider is gone'), 'the provider is gone'),
    (dict(said('act[look]'), error=BUSY), 'the provider is gone'), (dict(error=BUSY), 'the provider is gone'),
    (dict(error='the provider is gone'), 'gone'),
    (dict(error='Bad Gateway', message='the provider is gone'), 'Bad Gateway: the provider is gone'),
    (dict(object='error', message='the engine died', code=50301), 'the engine died'),
    (dict(detail='the engine died'), 'the engine died'),
    (dict(base_resp=dict(status_code=1002, status_msg='too many')), 'too many'),
    (said('', 'content_filter'), 'content_filter'),
    (said('act[lo', 'content_filter'), 'content_filter'), (said('act[lo', 'error'), "'error'"),
    (said('act[lo', 'network_error'), 'network_error'), (said('x', 'SAFETY'), 'SAFETY'),
    (said(None), 'no text'), (said(''), 'no text'), (said(' \n'), 'no text'), (said('', tokens=0), 'no text'),
    (said([]), 'no text'), (said([dict(type='image')]), 'no text'), (said(7), 'no text'),
    (said(None, message=dict(refusal='I cannot do that')), 'the model refuses: I cannot do that'),
    (said(None, tokens=5), 'no text'), (dict(choices=[dict(finish_reason='stop')]), 'no text'),
    (dict(choices=[dict(message='text')]), 'no text'), (dict(choices=['text']), 'no choices'),
    (dict(choices=dict(text='x')), 'no choices'), (dict(choices=[None]), 'no choices'),
    (b'<html><style>p {}</style><h1>502 Bad Gateway</h1></html>', '502 Bad Gateway'),
    (b'data: {"choices": []}', 'not JSON: data'), (b'{"choices": [{"mess', 'not JSON'), (b'null', 'no choices'),
    (b'', 'not JSON'),
    (b'['*100_000, 'not JSON')]

class Bytes(ToyServer):
    "Answers may be raw bytes; /models answers as usual"
    def handle(self, handler, body):
        self.requests.append((handler.path, body, dict(handler.headers)))
        self.send(handler, 200, self.answer(body))

@pytest.mark.parametrize('res,words', PASSING)
def test_a_failure_inside_an_answer_passes_or_is_reported(res, words):
    answers = iter([res, res, said('act[look]')])
    with Bytes(lambda b: next(answers)) as toy: assert complete(lm := chat(toy), stop=('\n',))[0].text == 'act[look]'
    assert lm.stats['retries'] == 2
    with Bytes(lambda b: res) as toy:
        with pytest.raises(A3TError, match='3 times') as e: complete(chat(toy))
    assert words in str(e.value) and '\n' not in str(e.value) and len(toy.requests) == 3

@pytest.mark.parametrize('res,words',
                         [(r, w) for r,w in PASSING if isinstance(r, bytes) or 'choices' not in r]
                         + [(dict(choices=[c]), w) for c,w in (
    (dict(text='', finish_reason='error', error=BUSY), 'the provider is gone'),
    (dict(text='act[lo', finish_reason='abort'), 'abort'), (dict(text=None, finish_reason='stop'), 'no text'),
    (dict(text='', finish_reason='stop'), 'no text'), (dict(text=[]), 'no text'),
    (dict(message=dict(content='x')), 'no text'))])
def test_the_same_of_a_text_model(res, words):
    with Bytes(lambda b: res) as toy:
        with pytest.raises(A3TError, match='3 times') as e: complete(model(toy, attempts=3))
        assert words in str(e.value)
        if not (isinstance(res, dict) and res.get('choices') and 'text' in res['choices'][0] and 'no text' in words
                or 'message' in str(res) and 'no text' in words):
            with pytest.raises(A3TError) as e: gather([model(toy, attempts=2).score('x', ['y'])])
            assert words in str(e.value)

@pytest.mark.parametrize('error,status',
                         [(dict(code='invalid_api_key', type='invalid_request_error', message='wrong key'), 401),
                          (dict(code=401), 401), (dict(code='403'), 403),
    (dict(type='insufficient_quota'), 402), (dict(code='model_not_found', type='invalid_request_error'), 404),
    (dict(type='invalid_request_error'), 400), (dict(status='UNAUTHENTICATED'), 401),
    (dict(type='BadRequestError', code=400), 400)])
def test_a_final_failure_inside_an_answer_is_not_repeated(error, status):
    for res in (dict(error=error), said(None, 'error', error=error), dict(error, object='error')):
        with Bytes(lambda b: res) as toy:
            with pytest.raises(Refused) as e: complete(chat(toy, pause=100.))
        assert e.value.status == status and len(toy.requests) == 1

def test_real_answers():
    for content in ('act[look]', [dict(type='text', text='act['), dict(type='text', text='look]')],
                    [dict(type='thinking', thinking='A mug?'), dict(type='text', text='act[look]')], ['act[look]']):
        for end in ('stop', None, 'eos', 'COMPLETE'):
            with ToyServer(lambda b: said(content, end)) as toy:
                assert complete(chat(toy, thinking=0))[0].text == 'act[look]'
    with ToyServer(lambda b: dict(said('act[look]', error=None), error=None)) as toy:
        assert complete(chat(toy))[0].text == 'act[look]'

def test_a_model_may_say_nothing():
    "It stopped at once: the server counts a token, and a local model does the same"
    with ToyServer(lambda b: said('', tokens=1)) as toy:
        assert (complete(chat(toy))[0].text, len(toy.requests)) == ('', 1)
    with ToyServer(lambda b: dict(choices=[dict(text='', finish_reason='stop', token_ids=[2])])) as toy:
        assert complete(model(toy))[0].text == ''

def test_an_error_holds_no_key(monkeypatch):
    monkeypatch.setenv('A3T_API_KEY', KEY)
    for res in (dict(error=f'wrong key {KEY}'), said(f'{KEY} is', 'error'), b'<p>' + KEY.encode(),
                said(f'<think>{KEY}')):
        with Bytes(lambda b: res) as toy:
            with pytest.raises(A3TError) as e: complete(chat(toy))
        assert KEY not in str(e.value)

def test_models_and_adapters_fail_in_the_same_ways(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{}')
    for res in (dict(error='no room'), dict(object='error', message='no room', code=400), b'<html>no room</html>'):
        with Bytes(lambda b: res) as toy:
            with pytest.raises(A3TError, match='no room'): complete(model(toy, attempts=2).adapter(tmp_path))
    class Other(ToyServer):
        def send(self, handler, status, content, **kw):
            super().send(handler, status, listing if handler.command == 'GET' else content, **kw)
    for listing in (dict(error='no room'), b'<html>no room</html>', dict(message='no room')):
        with Other(lambda b: MOVE) as toy:
            with pytest.raises(A3TError, match='no room'): complete(model(toy, attempts=2))
    for listing in ([dict(id='toy')], dict(data=None), dict(models=[]), dict(error=dict(code=404))):
        with Other(lambda b: MOVE) as toy: assert complete(model(toy, attempts=2))[0].text == MOVE

def play(toy, lm, tasks=2):
    env = load(max_steps=3)
    return rollout(lambda: load(max_steps=3), env.tasks('train')[:tasks], ReAct(lm, env.instruction, env.exemplar))

def test_no_episode_has_an_empty_action():
    for res in (said('', 'error', error=BUSY), said(None), said(''), said('<think>I need'),
                said(None, message=dict(reasoning='I need'))):
        steps = iter(['act[look]', res]*100)
        with ToyServer(lambda b: next(steps)) as toy:
            done = play(toy, lm := chat(toy), 1)
            assert lm.stats['retries'] or lm.stats['requests'] > 4
        assert all(s.action == 'look' for t in done for s in t.steps)
        with ToyServer(lambda b: res) as toy:
            with pytest.raises(A3TError): play(toy, chat(toy))

# ---- thoughts

THOUGHT = 'I need a mug.\nIs it on the desk? act[no]\n'
FORMS = [f'<think>{THOUGHT}</think>\n\nact[look]', f'<think>\n{THOUGHT}</think>act[look]\nYou see',
         f'{THOUGHT}</think>\nact[look]', f'<thinking>{THOUGHT}</thinking> act[look]',
         f'<THINK>{THOUGHT}</THINK>act[look]',
    f'[THINK]{THOUGHT}[/THINK]act[look]', f'<thought>{THOUGHT}</thought>act[look]',
    f'<seed:think>{THOUGHT}</seed:think>act[look]', f'◁think▷{THOUGHT}◁/think▷act[look]',
    '<think>\n\n</think>\n\nact[look]',
    f'<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>act[look]<|return|>',
    f'analysis{THOUGHT}assistantfinalact[look]', f'<|START_THINKING|>{THOUGHT}<|END_THINKING|>act[look]',
    f'<think>a <think>{THOUGHT}</think> b</think>act[look]', f'<|think|>{THOUGHT}<|/think|>act[look]',
    f'<longcat_think>{THOUGHT}</longcat_think>act[look]',
    f'<reflection>{THOUGHT}</reflection>act[look]', f'<scratchpad>{THOUGHT}</scratchpad>act[look]',
    f'<analysis>{THOUGHT}</analysis>act[look]', f'<|inner_prefix|>{THOUGHT}<|inner_suffix|>act[look]',
    f'<think budget="9">{THOUGHT}</think>act[look]',
    f'Here is my thought process:\n{THOUGHT}Here is my response:\nact[look]',
    f'<think>{THOUGHT}</think>\n<answer>\nact[look]\n</answer>',
    f'<thinking>{THOUGHT}</thinking><output>act[look]</output>',
    f'<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>act[look]<|END_RESPONSE|>',
    f'<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n<|begin_of_solution|>act[look]<|end_of_solution|>',
    f'<think>{THOUGHT}</think><think>{THOUGHT}</think>act[look]',
    f'<|begin_of_thought|>{THOUGHT}<|end_of_thought|>act[look]']

def generated(full, body):
    "What a server makes of a text: it ends at a stop string or after max_tokens letters"
    at = [i for i in (full.find(s) for s in body.get('stop') or []) if i >= 0] + [body['max_tokens']]
    return full[:min(at)], 'length' if min(at) == body['max_tokens'] < len(full) else 'stop'

def thinking_chat(full):
    def answer(body):
        text, end = generated(full, body)
        return dict(choices=[dict(message=dict(content=text), finish_reason=end)],
                    usage=dict(completion_tokens=len(text)))
    return answer

@pytest.mark.parametrize('full', FORMS)
def test_a_thought_is_not_the_action(full):
    for most in (8, 64):
        with ToyServer(thinking_chat(full)) as toy:
            c, = complete(lm := chat(toy), max_tokens=most, stop=('\n',))
            assert c.text.strip() == 'act[look]' and lm.facts['thinks']
            assert [s.action for t in play(toy, lm) for s in t.steps] == ['look']*6
    assert without_thoughts(full)[0].strip().startswith('act[look]')

def test_a_thought_beside_the_answer():
    for field in ('reasoning_content', 'reasoning', 'reasoning_details', 'thinking'):
        def answer(body):
            return said('act[look]' if body['max_tokens'] > 1000 and not body.get('stop') else None,
                        'stop' if body['max_tokens'] > 1000 else 'length', message={field:THOUGHT})
        with ToyServer(answer) as toy: assert [s.action for t in play(toy, chat(toy)) for s in t.steps] == ['look']*6

def test_a_model_that_does_not_think_is_asked_as_before():
    for full in ('act[look]', 'act[look]\n' + 'You see a desk. '*20, 'think[I need <b>it</b>.] act[look]'):
        def answer(body): return 'White.' if 'snow' in str(body) else thinking_chat(full)(body)
        with ToyServer(answer) as toy:
            done = play(toy, lm := chat(toy))
            bodies = [b for _,b,_ in toy.requests]
        assert [s.action for t in done for s in t.steps] == ['look']*6 and lm.facts['thinks'] is False
        assert bodies[-1]['stop'] == ['\n'] and bodies[-1]['max_tokens'] == 64 and sum('snow' in str(b)
            for b in bodies) == (len(full) > 64)

@pytest.mark.parametrize('full',
                         ['<think>' + THOUGHT*200, THOUGHT*200 + '</think>act[look]',
                          '<|channel|>analysis<|message|>' + THOUGHT*200])
def test_a_thought_without_end_names_the_setting_to_raise(full):
    for thinking in (0, 100):
        with ToyServer(thinking_chat(full)) as toy:
            if not thinking and full[0] != '<': continue # nothing shows it
            with pytest.raises(A3TError, match=r"raise thinking in the setting server, such as server = \{'thinking'"):
                complete(chat(toy, thinking=thinking), stop=('\n',))
        assert len(toy.requests) < 4
    with ToyServer(lambda b: said('', 'length', tokens=9)) as toy:
        with pytest.raises(A3TError, match='raise thinking'): complete(chat(toy))

def test_a_text_model_that_thinks():
    def answer(body):
        prompt = body['prompt']
        full = '<think>\nA mug.\nWhere?\n</think>'
        if prompt.endswith('<think>\n'): full = 'A mug.\nWhere?\n</think>\nact[no]'
        if prompt.endswith('</think>\n\n'): full = 'think[A mug!] act[look]\nYou see'
        text, end = generated(full, body)
        return dict(choices=[dict(text=text, finish_reason=end)], usage=dict(completion_tokens=len(text)))
    with ToyServer(answer) as toy:
        done = play(toy, model(toy))
        assert [(s.reason, s.action) for t in done for s in t.steps] == [('A mug!', 'look')]*6
        assert max(b['max_tokens'] for _,b,_ in toy.requests) == 2048
        with pytest.raises(A3TError, match='raise thinking'): play(toy, model(toy, thinking=5))

# ---- proxies and certificates

PROXIES = [('ALL_PROXY', 'socks://me:secret@host:1'), ('all_proxy', 'socks5://me:secret@host:1'),
           ('HTTPS_PROXY', 'socks4://host:1'), ('HTTPS_PROXY', 'http://me:secret@host:port'),
           ('https_proxy', 'host:99999'),
    ('HTTPS_PROXY', 'http://'), ('HTTPS_PROXY', '://x'), ('HTTPS_PROXY', 'me:secret@[::1'),
    ('HTTPS_PROXY', 'http://h\x7fst'), ('ALL_PROXY', 'http://é..é'), ('ALL_PROXY', 'http://xn--a'),
    ('ALL_PROXY', 'http://host:-1'), ('ALL_PROXY', 'a b c')]
CERTIFICATES = [('SSL_CERT_FILE', '/no/such'), ('SSL_CERT_FILE', '/'), ('SSL_CERT_FILE', __file__),
                ('SSL_CERT_DIR', '/no/such'), ('SSLKEYLOGFILE', '/no/such/log')]

@pytest.fixture
def no_proxies(monkeypatch):
    import os
    for k in list(os.environ):
        if k.lower().endswith('_proxy') or k.startswith('SSL'): monkeypatch.delenv(k)

@pytest.mark.parametrize('name,value',
                         PROXIES + CERTIFICATES + [('NO_PROXY', 'fe80::/10'), ('NO_PROXY', '::1, [, ,*.x:y'),
                                                   ('HTTP_PROXY', 'garbage'), ('http_proxy', 'socks://h:1')])
def test_a_server_on_this_machine_needs_no_proxy(no_proxies, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with ToyServer(lambda b: MOVE) as toy:
        for host in ('127.0.0.1', 'localhost', '0.0.0.0'):
            lm = ServerModel(f'{toy.url}#toy'.replace('127.0.0.1', host), attempts=1)
            assert complete(lm)[0].text == MOVE
    with pytest.raises(A3TError, match='nobody answers there'): complete(ServerModel('https://127.0.0.1:1/v1#m'))

@pytest.mark.parametrize('name,value', PROXIES + CERTIFICATES)
def test_an_unusable_variable_is_named(no_proxies, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(A3TError) as e: complete(ServerModel('https://models.invalid/v1#m', attempts=1))
    said = str(e.value)
    assert said.startswith(f'{name} = ') or value == 'a b c' and f'of {name}' in said, said
    assert 'secret' not in said and '\n' not in said and ('NO_PROXY' in said or 'unset' in said
                                                          or 'of ALL_PROXY' in said)

def test_which_proxy(no_proxies, monkeypatch):
    for k,v in dict(HTTP_PROXY='http://me:secret@a:1', ALL_PROXY='b:2',
                    NO_PROXY='example.org,fe80::/10,10.0.0.0/8, x:y/z').items():
        monkeypatch.setenv(k, v)
    assert proxy_for('http://models.com/v1') == ('http://me:secret@a:1',
                                                 ', through the proxy http://…@a:1 of HTTP_PROXY')
    assert proxy_for('https://models.com/v1')[0] == 'http://b:2'
    for direct in ('https://api.example.org/v1', 'http://10.3.4.5:8000/v1', 'http://[fe80::1]/v1', 'http://[::1]/v1',
                   'http://127.9.9.9/v1'):
        assert proxy_for(direct) == (None, '')
    monkeypatch.setenv('HTTP_PROXY', 'http://me:secret@127.0.0.1:1')
    with pytest.raises(A3TError, match=r'nobody answers there, through the proxy http://…@127.0.0.1:1 of HTTP_PROXY'):
        complete(ServerModel('http://models.com/v1#m'))

@pytest.mark.parametrize('address',
                         ['http://h:port/v1#m', 'http://h:99999/v1#m', 'http://[::1/v1#m', 'http://h:-1/v1',
                          'http://xn--a/v1', 'http://me:secret@h:port/v1', 'http://é..é/v1', 'http://:80/v1'])
def test_invalid_addresses(address):
    with pytest.raises(A3TError, match='begins with http://') as e: ServerModel(address)
    assert 'secret' not in str(e.value)

# ---- from the settings

def test_the_setting_server():
    lm = language_model('http://127.0.0.1:1/v1#tiny', slots=7,
                        server=dict(timeout=60, price=[1, 3.], thinking=0, body=dict(top_p=.9, stop=None)))
    assert (lm.limit, lm.timeout, lm.thinking, lm.body) == (7, 60, 0, dict(top_p=.9, stop=None))
    for bad, says in ((dict(timeuot=3), 'timeuot is unknown in the setting server .did you mean timeout.*put fields '
                                        'of the request itself into body'), (dict(top_p=.9), 'itself into body'),
                      (dict(timeout='long'), "timeout = 'long'"), (dict(limit=0), 'limit = 0'),
                      (dict(limit=2.5), 'limit'), (dict(attempts=True), 'attempts'), (dict(price=3), 'price'),
                      (dict(price=['a', 1]), 'price'),
                      (dict(body=3), 'must be a dict'),
                      (dict(body=dict(extra=dict(api_key=KEY))), 'into the environment')):
        for name in ('http://127.0.0.1:1/v1#tiny', 'tiny'):
            with pytest.raises(A3TError, match=says) as e: language_model(name, server=bad)
            assert KEY not in str(e.value)

def test_the_settings_reach_the_model():
    S = dict(load_settings('smoke', dict(context=300)), model='tiny')
    there = LoadedThere(*model_arguments(S))
    assert there.engine.context == 300 and pickle.loads(pickle.dumps(there)).engine is there.engine
    assert LoadedThere(*model_arguments(S | dict(context=0))).engine.context == 8192
    S = load_settings('smoke', dict(model='http://127.0.0.1:1/v1#tiny', server={'attempts':2, 'body':{'user':'me'}}))
    there = LoadedThere(*model_arguments(S))
    assert (there.limit, there.attempts, there.body) == (S['slots'], 2, dict(user='me'))

# ---- scores: an echo computed by transformers, in the form of vLLM

@pytest.mark.parametrize('with_tokenizer', [True, False])
def test_scores_are_those_of_the_local_model(tmp_path, with_tokenizer):
    net, tok = load_model(tiny_model(tmp_path/'m', 'qwen2'), device='cpu', dtype=torch.float32)
    def one(i, prompt):
        ids = prompt if isinstance(prompt, list) else encode_segments(tok, prompt)
        with torch.no_grad(): lp = net(torch.tensor([ids])).logits[0].log_softmax(-1)
        offsets, at = [], 0
        for t in ids: offsets.append(at); at += len(tok.decode([t]))
        return dict(index=i, text=tok.decode(ids), finish_reason='length',
                    logprobs=dict(text_offset=offsets,
                                  token_logprobs=[None] + lp[range(len(ids) - 1), ids[1:]].tolist()))
    answer = lambda body: dict(choices=[one(i, p) for i,p in enumerate(body['prompt'])][::-1]) # in any order
    with ToyServer(answer, owner='vllm') as toy:
        lm = model(toy, tokenizer=tok if with_tokenizer else None)
        prompt, candidates = ['You are in a room.\n', '> '], [f'go to desk {i}' for i in range(20)] + ['take mug',
                                                                                                       'look']
        # no token of the text may cross the joint
        if not with_tokenizer: prompt, candidates = prompt[:1], [f'\n{c}' for c in candidates]
        got, want = gather([lm.score(prompt, candidates)])[0], gather([LocalModel(net, tok).score(prompt,
                                                                                                  candidates)])[0]
    assert len(toy.requests) == 2 and torch.allclose(torch.tensor(got), torch.tensor(want), atol=1e-4)
    assert len({round(x, 3) for x in want}) > 10

# ---- adapters

def test_an_adapter_is_loaded_once(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{}')
    with ToyServer(lambda b: MOVE) as toy:
        lm = model(toy)
        gather([v.complete('Task') for v in (lm.adapter(tmp_path), lm, lm.adapter(tmp_path), lm.adapter(tmp_path))])
    loads, names = [b for p,b,_ in toy.requests if p.endswith('load_lora_adapter')], [b['model']
        for p,b,_ in toy.requests if p.endswith('/completions')]
    assert (len(loads) == 1 and loads[0]['lora_path'] == str(tmp_path)
            and sorted(names) == sorted([loads[0]['lora_name']]*3 + ['toy']))
    with pytest.raises(A3TError, match='is no adapter'): lm.adapter(tmp_path/'nothing')

def test_a_server_without_adapters(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{}')
    with ToyServer(lambda b: MOVE, [404]) as toy:
        with pytest.raises(A3TError, match='start vLLM with --enable-lora'): complete(model(toy).adapter(tmp_path))

# -- a prompt that is too long

@pytest.mark.parametrize('status,error', [
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the "
          "messages, 100 in the completion)."),
    (400, 'The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that '
          '`max_model_len` is no smaller than the number of text tokens.'),
    (400, 'the request exceeds the available context size, try increasing it'),
    (400, dict(code='context_length_exceeded', message='Please reduce the length of the messages or completion.')),
    (400, dict(type='exceed_context_size_error', message='request (5000 tokens) is too large', n_ctx=4096)),
    (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
    (400, 'prompt is too long: 5000 tokens > 4096 maximum'), (400, 'The input token count (5000) exceeds the maximum '
                                                                   'number of tokens allowed (4096).'),
    (422, 'Input validation error: `inputs` must have less than 4096 tokens. Given: 5000'),
    (422, 'Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000'),
    (413, 'Request Entity Too Large')])
def test_a_prompt_too_long_for_a_server_fills_the_context(status, error):
    lm = ServerModel('http://127.0.0.1:9/v1#toy')
    response = httpx.Response(status, json=dict(error=error))
    with pytest.raises(ContextFull, match=f'refuses .{status}: .*: the prompt is too long'):
        lm.read(response, '/chat/completions')
    with pytest.raises(Refused): lm.read(response, '/load_lora_adapter')

TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."

@pytest.mark.parametrize('status,res',
                         [(200, dict(error=TOO_LONG)), (200, dict(error=dict(message=TOO_LONG))),
                          (200, dict(error=dict(code=500, message=TOO_LONG))),
    (200, dict(error=dict(code='context_length_exceeded'))),
    (200, said(None, 'error', error=dict(code=400, message=TOO_LONG))), (200, dict(object='error', message=TOO_LONG)),
    (200, said('', 'model_context_window_exceeded')), (200, said('act[lo', 'context_length_exceeded')),
    (500, dict(error=dict(code=500, message='Context size has been exceeded.'))),
    (200, dict(choices=[dict(text='', finish_reason='error', error=TOO_LONG)]))])
def test_a_full_context_is_reported_in_many_ways(status, res):
    "With status 200, as a failure of the server, or as a finish reason: never retried"
    class Toy(ToyServer):
        def handle(self, handler, body):
            self.requests.append(body)
            self.send(handler, status, res)
    with Toy(None) as toy:
        with pytest.raises(ContextFull, match='the prompt is too long'): complete(chat(toy, pause=100.))
        assert len(toy.requests) == 1

def test_what_a_model_writes_about_a_context_is_no_full_context():
    for res in (said(TOO_LONG, 'content_filter'), said(TOO_LONG, 'error', error=BUSY)):
        with Bytes(lambda b: res) as toy:
            with pytest.raises(A3TError, match='3 times') as e: complete(chat(toy))
            assert not isinstance(e.value, ContextFull)
    with Bytes(lambda b: said(TOO_LONG)) as toy: assert complete(chat(toy))[0].text == TOO_LONG

@pytest.mark.parametrize('status,error',
                         [(400, 'stop: at most 4 strings'), (400, 'max_tokens must be at least 1'),
                          (422, 'temperature: Input should be less than or equal to 2'),
                          (404, 'context length: no such page')])
def test_other_refusals_do_not(status, error):
    with pytest.raises(Refused):
        ServerModel('http://127.0.0.1:9/v1#toy').read(httpx.Response(status, json=dict(error=error)), '/completions')

def test_an_episode_too_long_for_a_server_is_lost():
    from a3t.envs.base import ToyHouse
    with ToyServer(lambda b: MOVE, ['', '', (413, {}), '', *['']*50]) as toy:
        made = rollout(ToyHouse, ToyHouse().tasks('train')[:1], ReAct(model(toy)))
    assert made[0].full and len(made[0]) == 2 and not made[0].won

# -- a hosted model whose tokenizer is not here

def test_the_hub_is_asked_only_where_it_answers(monkeypatch):
    from a3t.models import api
    asked = []
    monkeypatch.setattr('transformers.AutoTokenizer.from_pretrained', lambda name, local_files_only: asked.append(
        local_files_only) or (_ for _ in ()).throw(OSError('not there')))
    monkeypatch.setattr(api, 'hub_reachable', lambda: False)
    assert load_tokenizer('http://127.0.0.1:9/v1#no/such-model') is None and asked == [True]
    monkeypatch.setattr(api, 'hub_reachable', lambda: True)
    assert load_tokenizer('http://127.0.0.1:9/v1#no/such-model') is None and asked == [True, True, False]
