"A real browser without a window, driven over its DevTools protocol: nothing to install besides the browser"
import asyncio, base64, json, os, re, shutil, signal, subprocess, tempfile, urllib.request
from pathlib import Path

from tornado.websocket import websocket_connect

NAMES = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome',
         'msedge')
KEYS = dict(Tab=9, Enter=13, Escape=27, Space=32)

def find_browser():
    "Path of a Chromium or Chrome, or None; `A3T_BROWSER` names another one"
    return next(filter(None, (os.environ.get('A3T_BROWSER'), *map(shutil.which, NAMES))), None)

class Browser:
    "One page of a headless browser"
    def __init__(self, path):
        self.folder = tempfile.mkdtemp()
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--remote-debugging-port=0',
                 '--no-first-run', '--disable-dev-shm-usage']
        self.log = open(Path(self.folder)/'log', 'w+', encoding='utf-8')
        self.process = subprocess.Popen([path, *flags, f'--user-data-dir={self.folder}/profile', 'about:blank'],
                                        stderr=self.log, stdout=subprocess.DEVNULL, start_new_session=True)
        self.loop, self.n, self.events = asyncio.new_event_loop(), 0, []
        try:
            self.socket = self.loop.run_until_complete(self._connect())
            for domain in ('Page', 'Runtime', 'Log'): self.send(f'{domain}.enable')
            self.send('Emulation.setDeviceMetricsOverride', width=1200, height=850, deviceScaleFactor=1, mobile=False)
        except BaseException: self.close(); raise

    async def _connect(self):
        for _ in range(300):
            if m := re.search(r'ws://([\d.:]+)/', Path(self.log.name).read_text(encoding='utf-8')): break
            if self.process.poll() is not None:
                raise RuntimeError('the browser does not start: '
                                   + Path(self.log.name).read_text(encoding='utf-8')[-300:])
            await asyncio.sleep(.1)
        else: raise RuntimeError('the browser does not answer')
        pages = json.load(urllib.request.urlopen(f'http://{m[1]}/json/list'))
        return await websocket_connect(next(p for p in pages if p['type'] == 'page')['webSocketDebuggerUrl'],
                                       max_message_size=2**26)

    async def _until(self, fits, message=None):
        if message: await self.socket.write_message(json.dumps(message))
        while True:
            got = await asyncio.wait_for(self.socket.read_message(), 30)
            if got is None: raise RuntimeError('the browser is gone')
            got = json.loads(got)
            if 'method' in got: self.events.append(got)
            if fits(got): return got

    def send(self, method, **params):
        "A command, and its result"
        self.n += 1
        answer = self.loop.run_until_complete(self._until(lambda m: m.get('id') == self.n,
                                                          dict(id=self.n, method=method, params=params)))
        if 'error' in answer: raise RuntimeError(f"{method}: {answer['error']}")
        return answer['result']

    def loads(self, act):
        "Do something that opens a page, and wait until it is there"
        self.events.clear()
        act()
        if not any(e['method'] == 'Page.loadEventFired' for e in self.events):
            self.loop.run_until_complete(self._until(lambda m: m.get('method') == 'Page.loadEventFired'))
        # the focus is set when the page is drawn
        self.js('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')

    def goto(self, url): self.loads(lambda: self.send('Page.navigate', url=url))
    def js(self, code):
        return self.send('Runtime.evaluate', expression=code, returnByValue=True,
                         awaitPromise=True)['result'].get('value')
    def text(self): return self.js('document.body.innerText')
    def type(self, text): self.send('Input.insertText', text=text)

    def press(self, key):
        "Press a key of `KEYS`, or a character"
        typed = dict(Enter='\r', Space=' ') | ({key:key} if len(key) == 1 else {})
        code, more = KEYS.get(key) or ord(key.upper()), dict(text=typed[key]) if key in typed else {}
        name = dict(key=' ' if key == 'Space' else key, code=key, windowsVirtualKeyCode=code)
        self.send('Input.dispatchKeyEvent', type='keyDown' if more else 'rawKeyDown', **name, **more)
        self.send('Input.dispatchKeyEvent', type='keyUp', **name)

    def click(self, label):
        "Click a button or link by its label, where it lies on the page"
        place = self.js(f'''(() => {{
            const e = [...document.querySelectorAll('button, a')].find(
                e => e.innerText.trim() === {json.dumps(label)} && !e.disabled);
            if (!e) return null;
            e.scrollIntoView({{block: 'center'}});
            const r = e.getBoundingClientRect();
            return [r.x + r.width/2, r.y + r.height/2] }})()''')
        if place is None: raise AssertionError(f'no button or link {label!r} on this page: {self.text()[:500]}')
        for kind in ('mousePressed', 'mouseReleased'):
            self.send('Input.dispatchMouseEvent', type=kind, x=place[0], y=place[1], button='left', clickCount=1)

    def tab_to(self, label, most=60):
        "Press Tab until the focus is on something with this label"
        for _ in range(most):
            focus = self.js('(e => e.innerText || e.getAttribute("aria-label") || "")(document.activeElement)')
            if focus.strip() == label: return
            self.press('Tab')
        raise AssertionError(f'Tab does not reach {label!r}')

    def picture(self, path):
        Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot', format='png',
                                                          captureBeyondViewport=True)['data']))

    def close(self):
        "End the browser with all its processes: the command is often a script that starts the browser"
        try:
            try: os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError: pass
            self.process.wait(10)
        finally:
            self.loop.close(); self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
