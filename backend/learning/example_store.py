"""Annotations, projects and unlabelled texts in Redis. Only this module uses the keys "gner:project...".

Webhooks can come late, twice and out of order. So the stored state does not depend on the order of events. For each
annotation, the save with the latest `updated_at_us` is kept; if that save comes twice, the one that names its
prediction. Annotations that were deleted, or whose task was, are never kept. Label Studio does not use an id twice, so
a deletion is final: it leaves a tombstone, even for an annotation that never came. Every call is one script or one
transaction, so a reader sees all of it or nothing.

The values are JSON. A project's secrets are never stored: `Project` has no field for them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import redis

from backend import store
from backend.errors import UnknownProject
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.examples import Snapshot, examples_of
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage

MAX_UNLABELLED_TASKS = 300

_PROJECTS = "gner:projects"  # set of the keys of all projects

_Part = Literal[
    "project",  # hash: the fields of Project as JSON
    "annotations",  # hash: annotation id -> Annotation as JSON
    "heads",  # hash: annotation id -> "<updated_at_us> <task id> <accepted: 0, 1> <prediction known: 0, 1>"
    "tasks",  # hash: task id -> its annotations' ids, with spaces between
    "deleted_annotations",  # set of ids: tombstones
    "deleted_tasks",  # set of ids: tombstones
    "forgotten",  # set of "task ID" and "annotation ID": those of the tombstones that were to be forgotten
    "texts",  # hash: task id -> its unlabelled texts as JSON
    "changes",  # how often an accepted annotation was added, changed or removed
    "trained",  # the value of `changes` at the last training
    "params",  # extra_params as JSON
]

_PARTS: tuple[_Part, ...] = (
    "project", "annotations", "heads", "tasks", "deleted_annotations", "deleted_tasks", "forgotten", "texts", "changes",
    "trained", "params",
)  # fmt: skip

_SAVE_PROJECT = """
local stamp = tonumber(ARGV[2])
local known = tonumber(redis.call('HGET', KEYS[1], 'updated_at_us') or '0')
if stamp ~= 0 and stamp < known then return 0 end  -- a later event came first
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'updated_at_us', stamp == 0 and string.format('%.0f', known) or ARGV[2],
  'id', ARGV[3], 'config_digest', ARGV[4], 'controls', ARGV[5])
if ARGV[6] ~= '""' then redis.call('HSET', KEYS[1], 'title', ARGV[6]) end
return 1
"""

_PUT = """
local annotations, heads, tasks, deleted_annotations, deleted_tasks, counter = unpack(KEYS)
local changed, counted = 0, 0
for i = 1, #ARGV, 6 do
  local id, task, stamp, accepted, told, value = unpack(ARGV, i, i + 5)
  if redis.call('SISMEMBER', deleted_annotations, id) + redis.call('SISMEMBER', deleted_tasks, task) == 0 then
    local head = redis.call('HGET', heads, id)
    local known, was_accepted, was_told
    if head then
      known, was_accepted, was_told = head:match('^(%S+) %S+ (%d) (%d)$')
    else
      local others = redis.call('HGET', tasks, task)
      redis.call('HSET', tasks, task, others and others .. ' ' .. id or id)
    end
    local is_newer = not head or tonumber(stamp) > tonumber(known)
    -- the same save through the API, after the webhook: most predictions are known only from the API
    local tells_more = head and stamp == known and told > was_told
    if is_newer or tells_more then
      redis.call('HSET', annotations, id, value)
      redis.call('HSET', heads, id, stamp .. ' ' .. task .. ' ' .. accepted .. ' ' .. told)
      changed = changed + 1
    end
    if is_newer and (accepted == '1' or was_accepted == '1') then counted = counted + 1 end
  end
end
if counted > 0 then redis.call('INCRBY', counter, counted) end
return changed
"""

_REMOVE = """
local annotations, heads, tasks, deleted_annotations, deleted_tasks, counter, texts, forgotten = unpack(KEYS)
local what, forget = ARGV[1], ARGV[2] == 'forget'
local ids, values, noted, counted = {}, {}, {}, 0
local function drop_texts(task)
  local value = redis.call('HGET', texts, task)
  if value then noted[#noted + 1] = value end
  redis.call('HDEL', texts, task)
end
local function remove(id)
  local head = redis.call('HGET', heads, id)
  if not head then return end
  local task, accepted = head:match('^%S+ (%S+) (%d) %d$')
  ids[#ids + 1] = id
  if forget then
    values[#values + 1] = redis.call('HGET', annotations, id)
    drop_texts(task)
  end
  redis.call('HDEL', annotations, id)
  redis.call('HDEL', heads, id)
  local left = {}
  for other in redis.call('HGET', tasks, task):gmatch('%S+') do
    if other ~= id then left[#left + 1] = other end
  end
  if #left > 0 then redis.call('HSET', tasks, task, table.concat(left, ' ')) else redis.call('HDEL', tasks, task) end
  if accepted == '1' then counted = counted + 1 end
end
for i = 3, #ARGV do
  if forget then redis.call('SADD', forgotten, (what == 'tasks' and 'task ' or 'annotation ') .. ARGV[i]) end
  if what == 'tasks' then
    redis.call('SADD', deleted_tasks, ARGV[i])
    for id in (redis.call('HGET', tasks, ARGV[i]) or ''):gmatch('%S+') do remove(id) end
    drop_texts(ARGV[i])
  else
    redis.call('SADD', deleted_annotations, ARGV[i])
    remove(ARGV[i])
  end
end
if counted > 0 then redis.call('INCRBY', counter, counted) end
return {ids, values, forget and noted or {}}
"""

_NOTE_TEXTS = """
local texts, tasks, deleted_tasks = unpack(KEYS)
local room = tonumber(ARGV[1]) - redis.call('HLEN', texts)
local function make_room()
  for _, task in ipairs(redis.call('HKEYS', texts)) do
    if redis.call('HEXISTS', tasks, task) == 1 then
      redis.call('HDEL', texts, task)
      room = room + 1
    end
  end
end
for i = 2, #ARGV, 2 do
  local task = ARGV[i]
  if redis.call('HEXISTS', texts, task) + redis.call('HEXISTS', tasks, task)
      + redis.call('SISMEMBER', deleted_tasks, task) == 0 then
    if room <= 0 then make_room() end
    if room <= 0 then return end
    redis.call('HSET', texts, task, ARGV[i + 1])
    room = room - 1
  end
end
"""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` removed."""

    annotation_ids: tuple[int, ...]
    texts: tuple[AnnotatedText, ...]  # all its texts, whose cached predictions must go too


class ExampleStore:
    """Annotations, projects and their unlabelled texts. Thread-safe.

    Every method raises StoreUnavailable when Redis does not answer. When a method has returned, its data are as durable
    as the server's own persistence.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._save_project = client.register_script(_SAVE_PROJECT)
        self._put = client.register_script(_PUT)
        self._remove = client.register_script(_REMOVE)
        self._note_texts = client.register_script(_NOTE_TEXTS)

    def check(self) -> None:
        """Raises StoreUnavailable if annotations could not be stored now."""
        with store.answering():
            self._client.ping()

    def save_project(self, project: Project) -> None:
        """Insert or update a project. A changed label config takes effect with this.

        An older state than the stored one is ignored; a state without a date never is. An empty title changes nothing.
        """
        controls = [
            [control.control, [[entry.words, entry.label] for entry in control.labels.entries]]
            for control in project.controls
        ]
        self._run(
            self._save_project,
            [_key(project.key, "project"), _PROJECTS],
            [
                project.key,
                project.updated_at_us,
                _dump(project.id),
                _dump(project.config_digest),
                _dump(controls),
                _dump(project.title),
            ],
        )

    def projects(self) -> tuple[Project, ...]:
        """All projects, sorted by id."""
        with store.answering():
            keys = self._keys()
            with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hgetall(_key(key, "project"))
                found = [_project_of(key, fields) for key, fields in zip(keys, pipeline.execute(), strict=True)]
        return tuple(sorted((project for project in found if project), key=lambda project: (project.id, project.key)))

    def project(self, key: str) -> Project | None:
        """The project with this key; None if it was never saved."""
        with store.answering():
            fields: Any = self._client.hgetall(_key(key, "project"))
        return _project_of(key, fields)

    def put(self, key: str, annotations: Sequence[Annotation]) -> int:
        """Insert or update annotations; returns how many changed something.

        An annotation changes nothing if it was deleted, or if it is not newer than the stored one and does not add the
        prediction that it started from.
        """
        if not annotations:
            return 0
        parts: tuple[_Part, ...] = (
            "annotations", "heads", "tasks", "deleted_annotations", "deleted_tasks", "changes",
        )  # fmt: skip
        values = [
            value
            for annotation in annotations
            for value in (
                annotation.id,
                annotation.task_id,
                annotation.updated_at_us,
                int(annotation.accepted),
                int(annotation.predicted_version is not None),
                _dump(_annotation_json(annotation)),
            )
        ]
        return int(self._run(self._put, [_key(key, part) for part in parts], values))

    def delete_annotations(self, key: str, ids: Sequence[int]) -> int:
        """Delete for good, even those that are put later; returns how many were stored."""
        return len(self._removed(key, "annotations", ids)[0]) if ids else 0

    def delete_tasks(self, key: str, ids: Sequence[int]) -> int:
        """Delete tasks with all their annotations, even those that are put later; returns how many were stored."""
        return len(self._removed(key, "tasks", ids)[0]) if ids else 0

    def snapshot(self, key: str) -> Snapshot:
        """The examples under the project's current label config. Raises UnknownProject."""
        with store.answering(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(_key(key, "project"))
            pipeline.hvals(_key(key, "annotations"))
            pipeline.get(_key(key, "changes"))
            fields, values, changes = pipeline.execute()
        project = _project_of(key, fields)
        if project is None:
            raise UnknownProject(f"nothing is stored of project {key!r}")
        examples, remapping = examples_of(project, [_annotation_of(json.loads(value)) for value in values])
        return Snapshot(project, examples, remapping, int(changes or 0))

    def annotations(self, key: str) -> tuple[Annotation, ...]:
        """All annotations, skipped ones too, sorted by id."""
        with store.answering():
            values: Any = self._client.hvals(_key(key, "annotations"))
        return tuple(sorted((_annotation_of(json.loads(value)) for value in values), key=lambda found: found.id))

    def changes(self, key: str) -> int:
        """How often an accepted annotation was added, changed or removed."""
        return int(self._get(key, "changes") or 0)

    def trained_changes(self, key: str) -> int:
        """The value of `changes` that the last training started from; 0 before the first."""
        return int(self._get(key, "trained") or 0)

    def note_trained(self, key: str, changes: int) -> None:
        """Record that a training that started from this value of `changes` is over."""
        with store.answering():
            self._client.set(_key(key, "trained"), changes)

    def params(self, key: str) -> dict[str, Any]:
        """The extra_params that were saved last; empty if there were none."""
        value = self._get(key, "params")
        params: dict[str, Any] = json.loads(value) if value else {}
        return params

    def save_params(self, key: str, params: dict[str, Any]) -> None:
        """Replace the extra_params."""
        with store.answering():
            self._client.set(_key(key, "params"), _dump(params))

    def note_texts(self, key: str, texts: Mapping[int, tuple[AnnotatedText, ...]]) -> None:
        """Keep the texts of tasks that are not labelled yet; `texts` is by task id.

        The first MAX_UNLABELLED_TASKS of a project are kept. Tasks that have an annotation by now make room.
        """
        values: list[Any] = [
            value for task_id, of_task in texts.items() for value in (task_id, _dump(_texts_json(of_task)))
        ]
        if values:
            parts: tuple[_Part, ...] = ("texts", "tasks", "deleted_tasks")
            self._run(self._note_texts, [_key(key, part) for part in parts], [MAX_UNLABELLED_TASKS, *values])

    def unlabelled_texts(self, key: str) -> tuple[AnnotatedText, ...]:
        """The noted texts of tasks without an accepted annotation, sorted by task id."""
        with store.answering(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(_key(key, "texts"))
            pipeline.hvals(_key(key, "heads"))
            noted, heads = pipeline.execute()
        labelled = {int(task_id) for _, task_id, accepted, _ in (head.split() for head in heads) if accepted == b"1"}
        by_task = {int(task_id): value for task_id, value in noted.items()}
        return tuple(
            text for task_id in sorted(by_task.keys() - labelled) for text in _texts_of(json.loads(by_task[task_id]))
        )

    def forget(self, key: str, *, task_id: int | None = None, annotation_id: int | None = None) -> Forgotten:
        """Delete a task or an annotation (give one of them), with the noted texts of the task.

        A tombstone prevents later events and reconciliations from bringing it back.
        """
        assert (task_id is None) != (annotation_id is None), "forget a task or an annotation"
        if task_id is not None:
            ids, values, noted = self._removed(key, "tasks", [task_id], "forget")
        else:
            ids, values, noted = self._removed(key, "annotations", [annotation_id], "forget")
        return Forgotten(tuple(sorted(map(int, ids))), _bare_texts(values, noted))

    def forgotten_of(self, key: str, examples: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """Which of these tasks and annotations, given as (task id, annotation id), were to be forgotten."""
        names = [name for task, annotation in examples for name in (f"task {task}", f"annotation {annotation}")]
        if not names:
            return ()
        with store.answering():
            answers: Any = self._client.smismember(_key(key, "forgotten"), names)
        return tuple(name for name, answer in zip(names, answers, strict=True) if answer)

    def find(self, *, task_id: int | None = None, annotation_id: int | None = None) -> tuple[str, ...]:
        """The keys of the projects that hold this task (labelled or noted) or this annotation; give one of them."""
        assert (task_id is None) != (annotation_id is None), "find a task or an annotation"
        with store.answering():
            keys = self._keys()
            with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hexists(_key(key, "heads"), str(annotation_id))
                    pipeline.hexists(_key(key, "tasks"), str(task_id))
                    pipeline.hexists(_key(key, "texts"), str(task_id))
                answers = pipeline.execute()
        return tuple(key for index, key in enumerate(keys) if any(answers[3 * index : 3 * index + 3]))

    def texts(self, key: str) -> tuple[AnnotatedText, ...]:
        """Every text that is kept of a project, annotated or not, without its spans."""
        with store.answering(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hvals(_key(key, "annotations"))
            pipeline.hvals(_key(key, "texts"))
            return _bare_texts(*pipeline.execute())

    def compact(self) -> None:
        """Have what was deleted vanish from the store's file as well, soon."""
        store.compact(self._client)

    def delete_project(self, key: str) -> None:
        """Delete all data of a project, tombstones and params too."""
        with store.answering(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.unlink(*(_key(key, part) for part in _PARTS))
            pipeline.srem(_PROJECTS, key)
            pipeline.execute()

    def _removed(
        self, key: str, what: Literal["annotations", "tasks"], ids: Sequence[Any], how: str = ""
    ) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """The ids of the removed annotations; with `how="forget"` also their values and those of noted texts."""
        parts: tuple[_Part, ...] = (
            "annotations", "heads", "tasks", "deleted_annotations", "deleted_tasks", "changes", "texts", "forgotten",
        )  # fmt: skip
        removed, values, noted = self._run(self._remove, [_key(key, part) for part in parts], [what, how, *ids])
        return removed, values, noted

    def _keys(self) -> list[str]:
        keys: Any = self._client.smembers(_PROJECTS)
        return sorted(key.decode() for key in keys)

    def _get(self, key: str, part: _Part) -> Any:
        with store.answering():
            return self._client.get(_key(key, part))

    def _run(self, script: Any, keys: Sequence[str], values: Sequence[Any]) -> Any:
        with store.answering():
            return script(keys=keys, args=values)


def _key(project: str, part: _Part) -> str:
    return f"gner:project:{project}:{part}"


def _dump(value: object) -> bytes:
    # a lone surrogate can arrive from Label Studio; json.loads reads it back
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _project_of(key: str, fields: Mapping[bytes, bytes]) -> Project | None:
    if not fields:
        return None
    values = {name.decode(): json.loads(value) for name, value in fields.items()}
    return Project(
        key=key,
        id=values["id"],
        title=values.get("title", ""),
        config_digest=values["config_digest"],
        controls=tuple(
            ControlLabels(control, PromptLabels.of((words, label) for words, label in entries))
            for control, entries in values["controls"]
        ),
        updated_at_us=values["updated_at_us"],
    )


def _bare_texts(annotations: Sequence[bytes], noted: Sequence[bytes]) -> tuple[AnnotatedText, ...]:
    """The distinct texts of stored annotations and of stored noted texts, without their spans."""
    annotated = [text for value in annotations for text in _annotation_of(json.loads(value)).texts]
    texts = [*annotated, *(text for value in noted for text in _texts_of(json.loads(value)))]
    return tuple(dict.fromkeys(replace(text, spans=()) for text in texts))


def _annotation_json(annotation: Annotation) -> dict[str, Any]:
    # each text is stored once, with its labels, however often it was labelled
    bare = list(dict.fromkeys(replace(text, spans=()) for text in (*annotation.texts, *annotation.predicted)))
    places = {text: index for index, text in enumerate(bare)}

    def spans_of(texts: Sequence[AnnotatedText]) -> list[Any]:
        return [[places[replace(text, spans=())], _spans_json(text)] for text in texts]

    return {
        "id": annotation.id,
        "task": annotation.task_id,
        "us": annotation.updated_at_us,
        "accepted": annotation.accepted,
        "truth": annotation.ground_truth,
        "bare": _texts_json(bare),
        "texts": spans_of(annotation.texts),
        "version": annotation.predicted_version,
        "predicted": spans_of(annotation.predicted),
        "dropped": annotation.dropped,
    }


def _annotation_of(value: Mapping[str, Any]) -> Annotation:
    bare = _texts_of(value["bare"])

    def texts_of(spans: Sequence[Any]) -> tuple[AnnotatedText, ...]:
        return tuple(replace(bare[index], spans=_spans_of(of_text)) for index, of_text in spans)

    return Annotation(
        id=value["id"],
        task_id=value["task"],
        updated_at_us=value["us"],
        accepted=value["accepted"],
        ground_truth=value["truth"],
        texts=texts_of(value["texts"]),
        predicted_version=value["version"],
        predicted=texts_of(value["predicted"]),
        dropped=value["dropped"],
    )


def _texts_json(texts: Sequence[AnnotatedText]) -> list[Any]:
    return [[text.control, text.passage.text, text.passage.breaks, text.labels, _spans_json(text)] for text in texts]


def _texts_of(values: Sequence[Any]) -> tuple[AnnotatedText, ...]:
    return tuple(
        AnnotatedText(control, Passage(text, tuple(breaks)), tuple(labels), _spans_of(spans))
        for control, text, breaks, labels, spans in values
    )


def _spans_json(text: AnnotatedText) -> list[Any]:
    return [[span.start, span.end, span.label, span.origin] for span in text.spans]


def _spans_of(values: Sequence[Any]) -> tuple[LabelledSpan, ...]:
    return tuple(LabelledSpan(*value) for value in values)
