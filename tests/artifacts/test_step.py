"""The name of an artifact: a hash of its identity, however it is put together."""

import hashlib
import json

from sublim_cli.artifacts.step import digest, identity, in_order
from sublim_cli.sweep.cells import study


def test_a_digest_is_the_hash_of_the_identity_as_json(small):
    for step in in_order(study(small()).steps):
        text = json.dumps(identity(step), sort_keys=True, separators=(",", ":"), allow_nan=False)
        assert digest(step) == hashlib.sha256(text.encode()).hexdigest()[:12]
