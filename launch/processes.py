"""TorchServe and the proxy as processes: started, watched, started again, and ended in order."""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from admin import leash
from admin.archive import build
from admin.paths import HOME, installation
from admin.ready import address
from admin.running_server import RunningServer, Target
from handlers.catalogue import FOLDER
from handlers.wire import COMBINED, TASKS
from launch.console import Stopped, on_signals, stop_on_signals
from launch.machine import StartError, folder_for_sockets, free_ports, java_home, write_config
from launch.run_directory import LOGS, make_run_directory, sweep
from launch.worker_logs import WorkerLogs
from proxy.settings import Settings

STOP_SECONDS = 15
RESTARTS, RESTART_WINDOW_S = 5, 600  # how often TorchServe or the proxy is started again within that time
# glibc keeps the memory of one forward for the next: one of 16 rows takes a tenth less time (docs/performance.md)
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "2",  # each thread that reads images would have a heap of its own, with holes of its own
}
NAMES = {"torchserve": "TorchServe", "proxy": "The proxy"}


class Server:
    """TorchServe and the proxy as child processes, and the run directory that they work in.

    Args:
        proxy: the proxy's settings, as variables.
        settings: of the archives' handler.
    """

    def __init__(self, options: argparse.Namespace, proxy: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self._options = options
        self._proxy = proxy
        self._settings = settings
        self._ports = free_ports(6)
        sweep()
        self.run_directory, self._lock = make_run_directory()
        self._store = self.run_directory / "model_store"
        self._logs = self.run_directory / LOGS
        self._tmp = folder_for_sockets(self.run_directory)
        self.worker_logs = WorkerLogs(self._logs)
        served = Settings.from_environment({**os.environ, **proxy})
        self._address = address(options.host, options.port, "https" if served.tls_cert else "http")
        self._keys = served.api_keys()
        # this server's own certificate may be made out for another address than the one used here
        self._client = httpx.Client(
            trust_env=False, verify=False, headers={"X-API-Key": self._keys[0]} if self._keys else {}, timeout=60.0
        )
        self._archive_of_task = {task: task if options.archives == "three" else COMBINED for task in TASKS}
        # a module with its arguments, its environment and its working directory
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str], Path]] = {}
        self._children: dict[str, psutil.Popen] = {}
        self._restarted: list[float] = []  # when, on the monotonic clock
        self.restarts = 0
        self._started: set[psutil.Process] = set()  # by those children

    def build_archives(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: build(name, self._store, self._settings), set(self._archive_of_task.values())))

    def start(self) -> None:
        """Starts both processes; `wait_ready` says when they serve."""
        self._logs.mkdir()
        config = self.run_directory / "config.properties"
        write_config(HOME / "config.properties", config, self._ports)
        tmp, logs = str(self._tmp), str(self._logs)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TS_CONFIG_FILE")
        }
        installed = installation()
        environment |= {
            "SD_HOME": str(installed.home),
            "SD_CONFIG": str(installed.config_file),
            "SD_CATALOGUE": str(self._store / FOLDER),
        }
        torchserve = {
            "JAVA_HOME": str(java_home()),
            # the pid file, the sockets and the unpacked archives: no other server uses them
            "TMPDIR": tmp, "TEMP": tmp, "TMP": tmp,
            "LOG_LOCATION": logs, "METRICS_LOCATION": logs,
            "HF_HUB_OFFLINE": "1",  # the weights are here by now
            "PYTORCH_ENABLE_MPS_FALLBACK": "1",
            # how long OpenMP's threads spin while they wait: by default so long that a second busy program on the
            # machine makes an image take several times as long (docs/performance.md)
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
            **{name: os.environ.get(name, value) for name, value in MALLOC.items()},
        }  # fmt: skip
        command = [
            "ts.model_server", "--start", "--foreground", "--ncs",
            "--model-store", str(self._store),
            "--models", ",".join(f"{name}={name}.mar" for name in sorted(set(self._archive_of_task.values()))),
            "--ts-config", str(config), "--log-config", str(HOME / "log4j2.xml"),
        ]  # fmt: skip
        self._commands["torchserve"] = command, environment | torchserve, self.run_directory
        proxy = {
            **self._proxy,
            "SD_INFERENCE_URL": f"http://127.0.0.1:{self._ports[0]}",
            "SD_MANAGEMENT_URL": f"http://127.0.0.1:{self._ports[1]}",
            "SD_ARCHIVES": ",".join(f"{task}={archive}" for task, archive in self._archive_of_task.items()),
            "SD_METRICS_URL": f"http://127.0.0.1:{self._ports[2]}",
        }
        self._commands["proxy"] = ["proxy"], environment | proxy, HOME
        for name in self._commands:
            self._spawn(name)
        self._running = RunningServer(
            pid=os.getpid(),
            port=self._options.port,
            management_url=proxy["SD_MANAGEMENT_URL"],
            inference_url=proxy["SD_INFERENCE_URL"],
            metrics_url=proxy["SD_METRICS_URL"],
            model_store=str(self._store),
        )
        self._running.write(self.run_directory)

    def _spawn(self, name: str) -> None:
        command, environment, folder = self._commands[name]
        with open(self._logs / f"{name}.out", "ab") as output:
            self._children[name] = psutil.Popen(
                leash.held(command),
                env=environment,
                cwd=folder,
                stdin=subprocess.PIPE,  # which ends with this process: leash.py waits for that
                stdout=output,
                stderr=output,
                **leash.own_group(),
            )

    @property
    def target(self) -> Target:
        """TorchServe, for those who register archives."""
        return self._running.target

    def wait_ready(self, show: Callable[[str], None]) -> None:
        """Waits until all three pipelines can serve. Raises StartError if they never will."""
        begin = time.monotonic()
        while True:
            self.check_processes()
            self.worker_logs.check()
            try:
                answer = self._client.get(self._address + "/ping", timeout=5.0).json()
                if answer["status"] == "success":  # the HTTP status may be 200 in any case: SD_FAILURES_AS_200
                    return
                state = answer["message"]
            except httpx.TransportError:
                state = "starting"
            show(f"{state} ({time.monotonic() - begin:.0f} s)")
            time.sleep(0.25)

    def check_processes(self) -> None:
        """Raises StartError if TorchServe or the proxy has stopped."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise StartError(f"{NAMES[name]} has stopped with exit code {child.returncode} (logs: {self._logs})")
        self.remember_processes()

    def remember_processes(self) -> None:
        """Remembers the children's own children: the workers of a killed TorchServe have no parent any more."""
        for child in self._children.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._started.update(child.children(recursive=True))

    def restart_dead(self) -> str | None:
        """Starts TorchServe or the proxy again if it has died, and returns a sentence that says so.

        Raises StartError if they die again and again.
        """
        dead = [name for name, child in self._children.items() if child.poll() is not None]
        if not dead:
            return None
        now = time.monotonic()
        self._restarted = [then for then in self._restarted if then > now - RESTART_WINDOW_S] + [now]
        if len(self._restarted) > RESTARTS:
            raise StartError(f"{NAMES[dead[0]]} dies again and again (logs: {self._logs})")
        code = self._children[dead[0]].returncode
        if "torchserve" in dead:
            # its workers outlive it, with all their memory, and nothing can reach them
            _end(self._started, seconds=0)
            self._started.clear()
            shutil.rmtree(self._tmp, ignore_errors=True)
            self._tmp.mkdir(exist_ok=True)
        for name in dead:
            self._spawn(name)
        self.restarts += 1
        return f"{' and '.join(NAMES[name] for name in dead)} died with exit code {code}: started again."

    def describe(self) -> str:
        """The server's address, model and device, as the workers report them."""
        try:
            answer = self._client.get(self._address + "/models")
            models = answer.raise_for_status().json()["models"]
        except httpx.HTTPError as error:
            raise StartError(f"The server does not answer: {error} (logs: {self._logs})") from None
        names = list(dict.fromkeys(model["model"] for model in models))
        place = f"{self._address}/k/KEY, with one of your keys as KEY" if self._keys else self._address
        text = (
            f"Ready: {place} — open it in a browser, or paste it into the plugin's settings.\n"
            f"Serving {' and '.join(names)} on {models[0]['device']}: {expectation(models[0])}. "
            "Another model: --model, or SD_MODEL; see README.md.\n"
            f"Logs, as long as it runs: {self._logs}"
        )
        for name in names:
            if not all(model["safety_checker"] for model in models if model["model"] == name):
                text += f"\n{name} has no safety checker: every answer of it says nsfw = false."
        return text

    def drain(self) -> None:
        """Lets the proxy finish running requests, within its limit; a second signal ends the wait."""
        proxy = self._children.get("proxy")
        if proxy is None or proxy.poll() is not None:
            return
        # the only signal that a process on Windows can handle; not run there so far
        proxy.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        try:
            proxy.wait(1)
        except psutil.TimeoutExpired:
            print("Finishing the running requests. Ctrl-C ends them at once.", flush=True)
            stop_on_signals()
            with contextlib.suppress(Stopped):
                proxy.wait()  # it has its own limit
            on_signals(signal.SIG_IGN)

    def stop(self) -> None:
        """Ends the proxy, Java and every worker: by SIGTERM, and after STOP_SECONDS by SIGKILL."""
        # all children of this process, also those that download or build for a custom model
        processes = {*psutil.Process().children(), *self._started}
        for child in self._children.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.update(child.children(recursive=True))
        # TorchServe's launcher and its workers end with Java; another signal does no harm
        _end(processes, STOP_SECONDS)

    def remove_files(self, keep_logs: bool = False) -> None:
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._lock.release()
        for entry in self.run_directory.iterdir() if keep_logs else [self.run_directory]:
            if entry.is_file() or entry.is_symlink():
                entry.unlink()
            elif entry != self._logs:
                shutil.rmtree(entry, ignore_errors=True)


def expectation(model: Mapping[str, Any]) -> str:
    """What a user may expect of a model, as a worker describes it: engine, precision, and an image's seconds."""
    engine, defaults = {"openvino": "OpenVINO", "torch": "torch"}[model["engine"]], model["defaults"]
    return (
        f"{engine} in {model['dtype']}, about {model['seconds_per_image']:g} s for an image of {defaults['width']} x "
        f"{defaults['height']} with {defaults['num_inference_steps']} steps"
    )


def _end(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Ends processes by SIGTERM, and after `seconds` by SIGKILL."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
