"""What passes between driver and workers survives the journey."""

import json
import pickle

from steerkit.stores import Record, Task


def test_tasks_and_records_travel_between_processes_and_through_json() -> None:
    task = Task(3, 1536, 2048, "shards/x.safetensors", characters=99)
    record = Record(
        3, 1536, 2048, task.name, 512, 9000, 1 << 20, "ab" * 32, {"resid_post@1": {"max_abs": 0.5}}
    )
    assert pickle.loads(pickle.dumps(task)) == task
    assert pickle.loads(pickle.dumps(record)) == record
    assert Record(**json.loads(json.dumps(record.to_json()))) == record
    assert len(pickle.dumps(record)) < 1024
