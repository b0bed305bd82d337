"""The job as a producer writes it, validated once, at intake.

`Job.parse(mapping)` gives a frozen record or raises InvalidJob with field, value and rule. `resolve(job, previous)`
replaces every `{"from": …}` by the digest that the previous step published. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from . import arrays, dependencies, globs, rules
from . import uri as uris
from .dependencies import Dependency, JobId
from .errors import InvalidJob
from .fairshare import ShareName
from .fields import Frozen, OrText, Text
from .gang import NodeRange, Nodes
from .retry import INFRASTRUCTURE_RETRIES, LONGEST_BACKOFF_S, ExitRule, Strategy

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
BLOB_IMAGE = "batchyard/blob"
"""What the images of blobs are called on nodes: with a tag, the blob's name (`KeyRing.name`)."""
_BLOB_IMAGE = re.compile(rf"((index\.)?docker\.io/)?{BLOB_IMAGE}([:@]|$)")
WORK = PurePosixPath("/work")
_REF = re.compile(r"Ref::([A-Za-z0-9_-]+)")
MOST_CONSUMABLES = 5  # kinds that one job may ask for
_MOST_ID = 2**31 - 1  # the engine takes no more
_RESERVED = ("AWS_BATCH", "BATCHYARD_")


EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
OutputName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
GpuType = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$"),
    BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v),
]
ConsumableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]
ContainerPath = Annotated[str, Field(min_length=2, max_length=1024)]


class Member(Frozen):
    """One blob that a step published: what `{"from": …}` becomes. size in bytes."""

    name: str
    digest: Annotated[str, Field(pattern=rf"^{DIGEST.pattern}$")]
    size: Annotated[int, Field(ge=0)]
    kind: Literal["file", "tree"] = "file"


class Input(OrText):
    """Where an input comes from: exactly one of digest, uri, from, members.

    `from` is an output of the step before, or with `job`, which must be in `depends_on`, one of that job: of an array a
    directory `0/ 1/ …` by the index of its children, or with `index` one of them; of one on which this job depends
    N_TO_N, that of the child with this one's index.

    A string stands for `{"digest": …}`, `{"uri": …}`, or as `job:<job id>:<output>` for an output of another job. `uri`
    may carry a digest and a size that its bytes must have, and, with s3://, `credentials`: the name of a secret on the
    node, a file as the AWS CLI has them.
    `members` is what `{"from": name}` after a group becomes: a directory `0/ 1/ …` in group order.
    `unpack`: it is an archive (zip, tar, tar.gz, tar.zst, …), and what is mounted is a directory of what is in it;
    digest and size are the archive's. `writable`: the job may change what it sees; its changes go with the attempt.
    """

    digest: Annotated[str, Field(pattern=rf"^{DIGEST.pattern}$")] | None = None
    size: Annotated[int, Field(ge=0)] | None = None
    kind: Literal["file", "tree"] = "file"
    uri: str | None = None
    credentials: SecretName | None = None
    from_: Annotated[OutputName | None, Field(alias="from")] = None
    job: JobId | None = None
    index: Annotated[int, Field(ge=0)] | None = None
    members: tuple[Member, ...] | None = None
    unpack: bool = False
    writable: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return written_out(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.uri is not None:
            uris.check_input(self.uri)
        if self.credentials is not None and not (self.uri or "").startswith("s3://"):
            raise ValueError('"credentials" goes with an s3:// URI')
        if self.size is not None and _is_directory(self.uri):
            raise ValueError('"size" is that of a file, and this is a directory')
        if self.unpack and (self.kind == "tree" or _is_directory(self.uri)):
            raise ValueError('"unpack" is for archives, and this is a directory')
        sources = [self.digest if self.uri is None else None, self.uri, self.from_, self.members]
        if sum(s is not None for s in sources) != 1:
            raise ValueError(
                'give exactly one of "sha256:…", "s3://…", "https://…", "file://…", {"from": "<output name>"} or '
                '{"job": "<job id>", "from": "<output name>"}'
            )
        if self.index is not None and self.from_ is None:
            raise ValueError('"index" goes with "from"')
        if self.job is not None and self.from_ is None:
            raise ValueError('"job" goes with "from", the name of its output')
        return self


def written_out(source: str) -> dict[str, str]:
    """What a string stands for as an input."""
    if source.startswith("job:"):
        job_id, _, name = source[4:].rpartition(":")
        return {"job": job_id, "from": name}
    return {"digest": source} if source.startswith("sha256:") else {"uri": source}


def _is_directory(uri: str | None) -> bool:
    return uri is not None and uri.startswith("s3://") and uri.endswith("/")


class Output(OrText):
    """A file or directory below /work that is kept at the end. A string stands for `{"path": …}`.

    A path with `*`, `?` or `[…]` in it is a pattern, and `**` stands for any number of directories: what matches is
    kept as a directory, below it as it lies below the part before the pattern. `[*]` is a plain `*`.

    `to`, s3://BUCKET/KEY or s3://BUCKET/PREFIX/, is where it is written too, with `credentials`: the name of a secret
    on the node. A directory needs a prefix, and lies below it; a file that goes to a prefix keeps its name.

    `on_failure`: also when the job fails, as far as it is there. `max_mib`: larger, it is not kept, and the job fails.
    """

    path: ContainerPath
    to: str | None = None
    credentials: SecretName | None = None
    on_failure: bool = False
    max_mib: Annotated[float, Field(gt=0, le=2**40, allow_inf_nan=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _with_keys(self) -> Self:
        if self.to is not None:
            uris.parse_s3(self.to)
        if (self.to is None) != (self.credentials is None):
            raise ValueError('"to" and "credentials", the name of a secret on the node, go together')
        if self.to is not None and not self.to.endswith("/") and globs.is_pattern(self.path):
            raise ValueError(f'"path" is a pattern, which gives a directory; end "to" with a /: {self.to}/')
        if any(name != "**" and "**" in name for name in self.path.split("/")):
            raise ValueError('"**" stands for directories, alone between two "/", such as /work/**/*.csv')
        return self

    @model_serializer(mode="wrap")
    def _short_again(self, dump: SerializerFunctionWrapHandler) -> Any:
        return self.path if self == Output(path=self.path) else dump(self)


class Job(Frozen):
    """What to run, what it needs, what goes in and what comes out."""

    definition: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}(:[1-9][0-9]{0,8})?$")] | None = None
    image: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s\x00-\x1f-][^\s\x00-\x1f]*$")]
    command: Annotated[tuple[Text, ...], Field(max_length=1024)] = ()
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")] | None = None
    environment: dict[EnvName, Text] = {}
    secrets: dict[EnvName, SecretName] = {}
    vcpus: Annotated[float, Field(ge=0.001, le=4096, allow_inf_nan=False)] = 1.0
    memory_mib: Annotated[int, Field(ge=6, le=2**32)] = 512
    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    gpu_type: GpuType | None = None
    disk_gib: Annotated[float, Field(ge=0, le=2**20, allow_inf_nan=False)] = 1.0
    parameters: dict[str, Text] = {}
    reuse: bool = False
    inputs: dict[ContainerPath, Input] = {}
    outputs: dict[OutputName, Output] = {}
    nodes: Nodes | None = None
    timeout_s: Annotated[int, Field(ge=1)] | None = None
    attempts: Annotated[int, Field(ge=1, le=10)] = 1
    evaluate_on_exit: Annotated[tuple[ExitRule, ...], Field(max_length=5)] = ()
    backoff_s: Annotated[float, Field(gt=0, le=LONGEST_BACKOFF_S, allow_inf_nan=False)] | None = None
    depends_on: Annotated[tuple[Dependency, ...], Field(max_length=dependencies.MOST)] = ()
    infrastructure_retries: Annotated[int, Field(ge=0, le=100)] = INFRASTRUCTURE_RETRIES
    on_demand_after: Annotated[int, Field(ge=0, le=100)] | None = None
    profile: Literal["strict", "aws"] = "strict"
    network: Literal["none", "bridge", "host"] | None = None
    user: Annotated[str, Field(pattern=r"^[0-9]+(:[0-9]+)?$")] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    array_size: Annotated[int, Field(ge=2, le=arrays.LARGEST)] | None = None
    share: ShareName | None = None
    scheduling_priority: Annotated[int, Field(ge=0, le=9999)] = 0
    consumables: Annotated[
        dict[ConsumableName, Annotated[int, Field(ge=1, le=2**31 - 1)]], Field(max_length=MOST_CONSUMABLES)
    ] = {}
    max_concurrent: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    tags: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)]],
        Field(max_length=50),
    ] = {}

    @model_validator(mode="after")
    def _rules(self) -> Self:
        _check_words("", self.command, self.environment, self.secrets)
        for n, one in enumerate(self.nodes.ranges if self.nodes else ()):
            _check_words(f"nodes.ranges.{n}.", one.command or (), one.environment, self.secrets)
        for name in self.secrets:
            _check_variable("secrets", name)
        _check_image("image", self.image)
        for n, one in enumerate(self.nodes.ranges if self.nodes else ()):
            if one.image is not None:
                _check_image(f"nodes.ranges.{n}.image", one.image)
        if self.user is not None and any(int(number) > _MOST_ID for number in self.user.split(":")):
            raise InvalidJob("user", self.user, f"a user or group is a number of at most {_MOST_ID}")
        if self.profile == "strict" and self.user is not None and int(self.user.split(":")[0]) == 0:
            raise InvalidJob(
                "user", self.user, 'root is not allowed in profile "strict"; choose another, or profile "aws"'
            )
        if self.gpu_type is not None and not self.gpus:
            raise InvalidJob("gpu_type", self.gpu_type, "goes with gpus; say how many")
        if self.on_demand_after is not None and self.nodes is not None:
            raise InvalidJob("on_demand_after", self.on_demand_after, "does not go with nodes; leave it out")
        if self.reuse and self.nodes is not None:
            raise InvalidJob("reuse", self.reuse, "is not for a job on several nodes; leave reuse or nodes out")
        if self.evaluate_on_exit and "attempts" not in self.model_fields_set:
            raise InvalidJob("evaluate_on_exit", "…", "needs attempts; say how often the job may run at most")
        dependencies.check(self.depends_on, self.array_size)
        if self.array_size is not None:
            if self.nodes is not None:
                raise InvalidJob("nodes", self.nodes.count, "is not for an array; leave array_size or nodes out")
            _check_array(self.outputs)
        _check_mounts(self.inputs, self.outputs)
        return self

    @classmethod
    def parse(cls, value: object) -> Job:
        """A job from what came over the wire, parameters applied. Raises InvalidJob."""
        if not isinstance(value, Mapping):
            raise InvalidJob("", "…", 'must be an object such as {"image": "busybox", "command": ["true"]}')
        try:
            job = cls.model_validate(value)
        except ValidationError as error:
            raise _first(error) from None
        return _substituted(job)

    def dump(self) -> dict[str, Any]:
        """JSON types only; `Job.parse(job.dump())` is the same job."""
        told = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {**told, "attempts": self.attempts} if self.evaluate_on_exit else told

    @property
    def retry(self) -> Strategy:
        """When it is tried again."""
        return Strategy(
            attempts=self.attempts,
            rules=self.evaluate_on_exit,
            backoff_s=self.backoff_s or 0,
            infrastructure_retries=self.infrastructure_retries,
        )

    def child(self, index: int) -> Job:
        """The job of one child of this array: what it writes elsewhere lies in a folder of its own."""
        own = {
            name: output if output.to is None else output.model_copy(update={"to": f"{output.to}{index}/"})
            for name, output in self.outputs.items()
        }
        return self.model_copy(update={"outputs": own})

    @property
    def networking(self) -> Literal["none", "bridge", "host"]:
        """The network mode, by profile where the job does not say."""
        return self.network or ("none" if self.profile == "strict" else "bridge")


def schema() -> dict[str, Any]:
    """The JSON schema of a job, as `batchyard schema` prints it."""
    told = Job.model_json_schema(by_alias=True)
    del told["required"]
    return {**told, "anyOf": [{"required": ["image"]}, {"required": ["definition"]}]}  # which may say the image


def _substituted(job: Job) -> Job:
    """With `Ref::name` replaced in all commands."""

    def words(command: Sequence[str]) -> tuple[str, ...]:
        return tuple(substitute(word, job.parameters) for word in command)

    command, update = words(job.command), dict[str, Any]()
    if command != job.command:
        update["command"] = command
    if job.nodes is not None and any(one.command for one in job.nodes.ranges):
        ranges = tuple(
            one.model_copy(update={"command": words(one.command)}) if one.command else one for one in job.nodes.ranges
        )
        update["nodes"] = job.nodes.model_copy(update={"ranges": ranges})
    return job.model_copy(update=update) if update else job


def substitute(word: str, parameters: Mapping[str, str]) -> str:
    """`Ref::name` becomes the parameter's value; an unknown name stays as it is, as AWS Batch does."""
    return _REF.sub(lambda match: parameters.get(match[1], match[0]), word)


def _first(error: ValidationError) -> InvalidJob:
    first = rules.most_telling(error)
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    value, rule = first["input"], rules.rule(first)
    if first["type"] == "tuple_type":
        rule = _LIST_RULES.get(field, 'must be a list of strings such as ["sh", "-c", "echo hello"]')
    elif first["type"] == "extra_forbidden":
        rule = rules.no_such_field(str(first["loc"][-1]), _fields_at(field))
    elif first["type"] in {"model_type", "dict_type"} and field.startswith("outputs."):
        rule = 'must be a path below /work, or an object such as {"path": …, "on_failure": true}'
    elif first["type"] == "model_type" and field.startswith("inputs."):
        rule = 'must be "sha256:…", a URI, or an object such as {"from": "<output name>"}'
    elif first["type"] == "model_type" and field == "nodes":
        rule = 'must be a number of nodes, or an object such as {"count": 3, "main": 0}'
    elif first["type"] == "missing":
        value = None
    elif first["type"] in rules.TEXT_ERRORS:
        rule = _text_rule(first["loc"]) or rule
    within = {"environment", "secrets"} & set(first["loc"][:-1]) and first["loc"][-1] != "[key]"
    keys = field.endswith(".credentials")
    if keys or (within and first["loc"][0] == "secrets"):
        rule = "must be the name of a secret (letters, digits, '.', '-', '_'), never its value"
    if keys or within or not first["loc"] or first["type"] == "extra_forbidden":
        value = "…"  # it may be or hold a password, and reasons are shown to everybody
    value = uris.without_secrets(value)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return InvalidJob(field, value, rule + more)


_SECRET = 'letters, digits, ".", "-" and "_", first a letter or digit, at most 128'
_LIST_RULES = {
    "evaluate_on_exit": 'must be a list of rules such as [{"action": "EXIT", "on_exit_code": "137"}]',
    "depends_on": 'must be a list of job ids, or of objects such as {"job_id": …, "on_failure": "CONTINUE"}',
    "nodes.ranges": 'must be a list such as [{"targets": "1:", "vcpus": 2}]',
}
_TEXT_RULES = {
    "image": "an image is a name such as busybox:1.36, without blanks, at most 255 characters, or the digest of one",
    "name": f"a job's name is {rules.NAME}",
    "gpu_type": "a type of GPU is a name such as a100: letters, digits, '-', '_' and '.', at most 64",
    "share": "a share is 1 to 255 letters and digits",
    "consumables.[key]": f"a consumable resource's name is {rules.NAME}",
    "user": "a user is UID or UID:GID in digits",
    "tags": "a tag's key has 1 to 128 characters, its value at most 256",
    "inputs.[key]": "must be an absolute path such as /in/data, at most 1024 characters",
    "outputs.[key]": f"an output's name is {_SECRET}",
    "environment.[key]": 'a variable\'s name is letters, digits and "_", first no digit, at most 256',
    "secrets.[key]": 'a variable\'s name is letters, digits and "_", first no digit, at most 256',
    "digest": "a digest is sha256: and 64 hex digits (0-9, a-f)",
    "from": f"an output's name is {_SECRET}",
    "targets": 'nodes are named by index, such as "0:3", "2:" or ":3"',
    "path": "must be a path below /work, at most 1024 characters",
}


def _text_rule(loc: tuple[int | str, ...]) -> str | None:
    """The rule of the text at a place: of a field of the job, of a name in one, or of what stands deeper."""
    top, last = str(loc[0]), str(loc[-1])
    if len(loc) == 1 or top == "tags":
        return _TEXT_RULES.get(top)
    return _TEXT_RULES.get(f"{top}.{last}" if last == "[key]" or top not in {"inputs", "outputs", "nodes"} else last)


def _fields_at(field: str) -> list[str]:
    models: dict[str, type[Frozen]] = {
        "inputs": Input,
        "outputs": Output,
        "evaluate_on_exit": ExitRule,
        "depends_on": Dependency,
        "nodes": NodeRange if field.startswith("nodes.ranges") else Nodes,
    }
    top, dot, _ = field.partition(".")
    model = models[top] if dot and top in models else Job
    return [about.alias or name for name, about in model.model_fields.items()]


def _check_image(field: str, image: str) -> None:
    """By half a digest an engine finds what it has, and by our own name what a blob was loaded as; whoever's it is."""
    if image.startswith("sha256:") and not DIGEST.fullmatch(image):
        raise InvalidJob(field, image, "of an image that is a blob, the digest is sha256: and 64 hex digits")
    if _BLOB_IMAGE.match(image):
        raise InvalidJob(field, image, "is what a node calls an image that is a blob; name the blob by its digest")


def _check_words(at: str, command: Sequence[str], environment: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    for field, words in (("command", command), ("environment", environment.values())):
        if any("\0" in word for word in words):
            raise InvalidJob(at + field, "…", "must not contain NUL")
    for name in environment:
        _check_variable(f"{at}environment", name)
    if both := environment.keys() & secrets.keys():
        raise InvalidJob("secrets", min(both), f"is in {at}environment too; keep one")


def _check_variable(field: str, name: str) -> None:
    if name.startswith(_RESERVED):
        raise InvalidJob(field, name, "names that start with AWS_BATCH or BATCHYARD_ are reserved")


def _check_mounts(inputs: Mapping[str, Input], outputs: Mapping[str, Output]) -> None:
    targets = {path: _container_path("inputs", path) for path in inputs}
    for path, target in targets.items():
        if target in (PurePosixPath("/tmp"), WORK) or target.parts[1] in {"proc", "sys", "dev"}:
            raise InvalidJob("inputs", path, "this path is the platform's; choose one such as /in/data")
        if any(target == other or target in other.parents for at, other in targets.items() if at != path):
            raise InvalidJob("inputs", path, "lies above or on another input's path; keep them apart")
    taken: dict[str, str] = {}
    for name, output in outputs.items():
        if WORK not in _container_path(f"outputs.{name}", output.path).parents:
            raise InvalidJob(f"outputs.{name}", output.path, f"must be below {WORK}, where the job writes")
        if output.to is not None and not output.to.endswith("/") and taken.setdefault(output.to, name) != name:
            raise InvalidJob(f"outputs.{name}.to", output.to, f"output {taken[output.to]} goes there too")


def _check_array(outputs: Mapping[str, Output]) -> None:
    for name, output in outputs.items():
        if output.to is not None and not output.to.endswith("/"):
            rule = "every child of the array would write it; end it with a / and each child's lies below, in <index>/"
            raise InvalidJob(f"outputs.{name}.to", output.to, rule)


def _container_path(field: str, path: str) -> PurePosixPath:
    clean = PurePosixPath(path)
    if not clean.is_absolute() or ".." in clean.parts or len(clean.parts) < 2 or "\0" in path or path.startswith("//"):
        raise InvalidJob(field, path, 'must be an absolute path in the container, without ".."')
    return clean


def check_sources(job: Job) -> None:
    """At the door, before `resolve`. Raises InvalidJob: an input is of a job that need not have ended."""
    awaited = {on.job_id for on in job.depends_on}
    for path, spec in job.inputs.items():
        if spec.job is not None and spec.job not in awaited:
            rule = "is not in depends_on; add it there, so that it has ended when this job starts"
            raise InvalidJob(f"inputs.{path}.job", spec.job, rule)


def of_step_before(spec: Input) -> bool:
    """Whether the input is an output of the step before."""
    return spec.from_ is not None and spec.job is None


def resolve(job: Job, previous: object) -> Job:
    """The job with each `{"from": …}` replaced by what `previous`, the result of the step before, published.

    previous: the result object of a job, a list of them after a group, or None. The outputs of an array, which may be
    many, are looked up by the node: they become `{"job": …, "from": …}`. Raises InvalidJob.
    """
    if not any(of_step_before(spec) for spec in job.inputs.values()):
        return job
    found = {
        path: _as_told(path, spec, previous) if of_step_before(spec) else spec for path, spec in job.inputs.items()
    }
    return job.model_copy(update={"inputs": found})


def _as_told(path: str, spec: Input, previous: object) -> Input:
    """What was published, to be given to the job as it asked."""
    asked = {"unpack": spec.unpack, "writable": spec.writable}
    found = _found(path, spec, previous).model_copy(update=asked)
    kinds = {found.kind, *(member.kind for member in found.members or ())}
    if spec.unpack and "tree" in kinds:
        raise InvalidJob(f"inputs.{path}.unpack", True, f"output {spec.from_} is a directory already; leave it out")
    return found


def _found(path: str, spec: Input, previous: object) -> Input:
    assert spec.from_ is not None
    field = f"inputs.{path}.from"
    if previous is None:
        raise InvalidJob(
            field, spec.from_, 'there is no previous result; use "from" in a chain, after a chord or in a link'
        )
    if _is_array(previous):
        return _of_array(field, spec, previous)
    if not isinstance(previous, list):
        if spec.index is not None:
            raise InvalidJob(field, spec.from_, '"index" needs the results of a group before it')
        member = _output(field, spec.from_, previous)
        return Input(digest=member.digest, size=member.size, kind=member.kind)
    if spec.index is None and any(_is_array(one) for one in previous):
        raise InvalidJob(field, spec.from_, 'there is an array job in the group before it; say "index" for one of them')
    if spec.index is None:
        return Input(members=tuple(_output(field, spec.from_, one) for one in previous))
    if spec.index >= len(previous):
        raise InvalidJob(field, spec.index, f"the group before it has {len(previous)} results")
    if _is_array(previous[spec.index]):
        return _of_array(field, spec.model_copy(update={"index": None}), previous[spec.index])
    member = _output(field, spec.from_, previous[spec.index])
    return Input(digest=member.digest, size=member.size, kind=member.kind)


def _is_array(result: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(result, Mapping) and isinstance(result.get("array"), Mapping)


def _of_array(field: str, spec: Input, result: Mapping[str, Any]) -> Input:
    job_id, size = result.get("job_id"), result["array"].get("size")
    if spec.index is not None and not (isinstance(size, int) and spec.index < size):
        raise InvalidJob(field, spec.index, f"the array before it has {size} children")
    try:
        return Input.model_validate({"job": str(job_id or ""), "from": spec.from_, "index": spec.index})
    except ValidationError:
        raise InvalidJob(field, spec.from_, "the previous result is not that of a Batchyard job") from None


def _output(field: str, name: str, result: object) -> Member:
    outputs = result.get("outputs") if isinstance(result, Mapping) and "job_id" in result else None
    if not isinstance(outputs, Mapping):
        raise InvalidJob(field, name, "the previous result is not that of a Batchyard job")
    if name not in outputs:
        raise InvalidJob(field, name, f"the previous job has no output of this name; it has {_names(outputs)}")
    try:
        found = {key: value for key, value in {**outputs[name]}.items() if key != "uri"}  # where it lies besides
        return Member.model_validate({"name": name, **found})
    except (ValidationError, TypeError):
        raise InvalidJob(field, name, "the previous result does not describe a digest and a size") from None


def _names(outputs: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(sorted(outputs)) or "none"
