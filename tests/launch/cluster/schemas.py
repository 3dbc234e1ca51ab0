"""What JobSet v1alpha2 and SkyPilot know, as far as our templates use it.

Strict: a field that is misspelt, or in the wrong place, is an error.
"""


def _object(required=(), **properties):
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
  }


def _list(items):
  return {"type": "array", "items": items, "minItems": 1}


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_AMOUNTS = {
  "type": "object",
  "additionalProperties": {"type": ["integer", "string"]},
}

_CONTAINER = _object(
  ("name", "image", "command", "args"),
  name=_TEXT,
  image=_TEXT,
  command=_list(_TEXT),
  args=_list(_TEXT),
  env=_list(
    _object(
      ("name", "valueFrom"),
      name=_TEXT,
      valueFrom=_object(
        ("secretKeyRef",),
        secretKeyRef=_object(
          ("name", "key"),
          name=_TEXT,
          key=_TEXT,
          optional={"type": "boolean"},
        ),
      ),
    )
  ),
  resources=_object(limits=_AMOUNTS, requests=_AMOUNTS),
  volumeMounts=_list(
    _object(("name", "mountPath"), name=_TEXT, mountPath=_TEXT)
  ),
  readinessProbe=_object(tcpSocket=_object(("port",), port=_COUNT)),
)
_POD = _object(
  ("containers", "restartPolicy"),
  containers=_list(_CONTAINER),
  restartPolicy={"enum": ["OnFailure", "Never"]},
  nodeSelector=_WORDS,
  terminationGracePeriodSeconds=_COUNT,
  volumes=_list(
    _object(
      ("name", "persistentVolumeClaim"),
      name=_TEXT,
      persistentVolumeClaim=_object(("claimName",), claimName=_TEXT),
    )
  ),
)
_JOB = _object(
  ("template", "parallelism", "completions"),
  parallelism=_COUNT,
  completions=_COUNT,
  backoffLimit=_COUNT,
  completionMode={"enum": ["Indexed", "NonIndexed"]},
  template=_object(("spec",), spec=_POD),
)
JOBSET = _object(
  ("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=_object(("name",), name=_TEXT),
  spec=_object(
    ("replicatedJobs",),
    network=_object(
      enableDNSHostnames={"type": "boolean"},
      subdomain=_TEXT,
    ),
    successPolicy=_object(
      ("operator",),
      operator={"enum": ["All", "Any"]},
      targetReplicatedJobs=_list(_TEXT),
    ),
    failurePolicy=_object(maxRestarts=_COUNT),
    replicatedJobs=_list(
      _object(
        ("name", "template"),
        name=_TEXT,
        replicas=_COUNT,
        dependsOn={
          "type": "array",
          "maxItems": 1,
          "items": _object(
            ("name", "status"),
            name=_TEXT,
            status={"enum": ["Ready", "Complete"]},
          ),
        },
        template=_object(("spec",), spec=_JOB),
      )
    ),
  ),
)

SKYPILOT_TASK = _object(
  ("name", "resources", "run"),
  name=_TEXT,
  workdir=_TEXT,
  num_nodes=_COUNT,
  resources=_object(
    accelerators={"type": "string", "pattern": r"^[\w-]+:\d+$"},
    use_spot={"type": "boolean"},
    disk_size=_COUNT,
  ),
  envs=_WORDS,
  file_mounts={
    "type": "object",
    "additionalProperties": _object(
      ("name", "store", "mode"),
      name=_TEXT,
      store={"enum": ["s3", "gcs"]},
      mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
    ),
  },
  setup=_TEXT,
  run=_TEXT,
)
