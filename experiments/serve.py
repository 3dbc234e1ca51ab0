"""Serves a store to trainers anywhere.

python -m experiments.serve --store=STORE --port=8815
python -m experiments.serve --run=runs/scale --port=8815   # what it harvested

With several machines or disks, one server for each slice of the shards:

python -m experiments.serve --store=STORE --port=8815 --part=0 --parts=2
python -m experiments.serve --store=STORE --port=8815 --part=1 --parts=2

Ctrl-C ends it; trainers wait until it is back, and go on.
"""

import os
import pathlib
import signal
import sys
import threading

from absl import app, flags

from gemmascope_jax.data.serving import access, server, status
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.experiment import activations

_STORE = flags.DEFINE_string("store", None, "Folder of the store.")
_RUN = flags.DEFINE_string("run", None, "Or the run that harvested it.")
_HOST = flags.DEFINE_string("host", server.LOCAL, "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 0, "Port; 0 takes a free one.")
_PART = flags.DEFINE_integer("part", 0, "Which slice of the shards to serve.")
_PARTS = flags.DEFINE_integer("parts", 1, "Servers that share the shards.")
_BUFFER = flags.DEFINE_float(
  "buffer_gib", 1.0, "GiB of memory for ready batches."
)
_PATIENCE = flags.DEFINE_float(
  "patience",
  30.0,
  "Seconds that trainers wait for one that is slower, so that one reading"
  " serves all; 0: never.",
)
_TLS_CERT = flags.DEFINE_string("tls_cert", None, "PEM file: encrypt with it.")
_TLS_KEY = flags.DEFINE_string("tls_key", None, "PEM file of its key.")
_TOKEN_FILE = flags.DEFINE_string(
  "token_file",
  None,
  f"File of the token that trainers need; else ${access.VARIABLE}, if set.",
)
_EVERY = flags.DEFINE_float(
  "status_seconds", None, "Seconds between status lines; 1 on a terminal."
)


_LAST_SECONDS = 5.0  # to end streams before the process ends anyway


def start() -> server.StoreServer:
  """The server that the flags describe; it listens."""
  if bool(_TLS_CERT.value) != bool(_TLS_KEY.value):
    raise ValueError("--tls_cert and --tls_key: expected both or neither")
  if not 0 <= _PORT.value <= 65535:
    raise ValueError(f"--port={_PORT.value}: expected 0..65535; 0 takes one")
  if _EVERY.value is not None and not _EVERY.value > 0:
    raise ValueError(
      f"--status_seconds={_EVERY.value}: expected more than 0 seconds"
    )
  if not (0 < _BUFFER.value < float("inf") and _PATIENCE.value >= 0):
    raise ValueError(
      f"--buffer_gib={_BUFFER.value} --patience={_PATIENCE.value}: expected"
      " more than 0 GiB and at least 0 seconds"
    )
  tls = None
  if _TLS_CERT.value:
    tls = tuple(
      pathlib.Path(file).read_bytes()
      for file in (_TLS_CERT.value, _TLS_KEY.value)
    )
  if bool(_STORE.value) == bool(_RUN.value):
    raise ValueError("expected either --store or --run")
  if _RUN.value:
    store = Store.open(activations.store_of(pathlib.Path(_RUN.value)))
  else:
    store = Store.open(_STORE.value)
  return server.StoreServer(
    store,
    host=_HOST.value,
    port=_PORT.value,
    owned=server.owned_rows(store.plan, _PART.value, _PARTS.value),
    buffer_bytes=int(_BUFFER.value * 2**30),
    patience=_PATIENCE.value,
    token=access.read_token(_TOKEN_FILE.value),
    tls=tls,
  )


def main(argv):
  """Serves until a signal comes."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  done, signals = threading.Event(), []

  def end(number, frame):
    signals.append(signal.Signals(number).name)
    done.set()

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
  try:
    serving = start()
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(status.hello(serving), flush=True)
  if (warning := status.warning(serving)) is not None:
    print(warning, file=sys.stderr, flush=True)
  status.Line(serving, _EVERY.value).run(done)
  print(f"\n{signals[0]}\n{status.summary(serving)}", flush=True)
  # A stream whose reader has stopped reading would keep the server for ever.
  ending = threading.Thread(target=serving.close, daemon=True)
  ending.start()
  ending.join(_LAST_SECONDS)
  os._exit(0)


if __name__ == "__main__":
  app.run(main)
