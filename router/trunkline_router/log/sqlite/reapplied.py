"""Applies to a restored log what was revoked, deleted and erased since its backup.

There are two sources: the database that is being replaced, if the backup is a part of its past, and exported
audit entries. Messages of that time are lost; what was taken from somebody must not come back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TENANT_STATE_SUSPENDED

from trunkline_router.core.values.stored_records import RevocationKind
from trunkline_router.core.values.topics import TopicKey, address_of, describe
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.erasure_plan import SEARCHED_ENTRIES
from trunkline_router.log.message_ids import new_epoch
from trunkline_router.log.sqlite.commit_mark import read_state
from trunkline_router.log.sqlite.erasure import erase_tenant, erase_user, reset
from trunkline_router.log.sqlite.statements import END
from trunkline_router.log.sqlite.tenant_key_rows import read_tenant_keys, write_tenant_keys

#: Tables of which the replaced database has the later rows, and the tenant's column of each.
_REGISTERED = ("api_keys", "revocations", "tenant_keys")
_ROLE_USER = 1
#: Time between the record of a change and its commit at most.
_LONGEST_COMMIT_MS = 60_000


class Reapplied:
    """Applies changes to one restored log, in its transaction, and notes each in `done`."""

    def __init__(self, db: sqlite3.Connection, now_ms: int, data_keys: DataKeys | None) -> None:
        self._db = db
        self._data_keys = data_keys
        self._now_ms = now_ms
        #: What was applied, in words.
        self.done: list[str] = []
        #: What could not be applied, in words.
        self.open: list[str] = []
        #: Logs that began after the backup, each with its last seq.
        self.lost_logs: dict[TopicKey, int] = {}
        self._of_target: dict[str, Callable[[str, str], None]] = {
            "RevokeApiKey": self._revoke_key,
            "EraseUser": self._erase_user,
            "ResetConversation": self._reset,
        }

    # From the replaced database

    def from_database(self, old: sqlite3.Connection) -> None:
        """Take over tenants, keys and revocations, and erase what was erased there.

        The backup must be a part of its past; see `is_successor`.
        """
        self._tenants(old)
        self._registered(old)
        self._erased_logs(old)
        self._erased_users(old)
        self._audit(old)
        self._lost_logs(old)

    def _tenants(self, old: sqlite3.Connection) -> None:
        rows = {row[0]: row for row in old.execute("SELECT * FROM tenants")}
        for name, state, created_ms in self._db.execute(
            "SELECT tenant, state, created_ms FROM tenants"
        ).fetchall():
            kept = rows.get(name)
            if kept is None or kept[3] != created_ms:
                self._erase_tenant(name)
            elif kept[1] != state:
                self.done.append(f"tenant {name}: state {state} became {kept[1]}")
        marks = ", ".join("?" * 5)
        self._db.executemany(f"INSERT OR REPLACE INTO tenants VALUES ({marks})", rows.values())

    def _registered(self, old: sqlite3.Connection) -> None:
        gone = {row[0] for row in self._db.execute("SELECT key_id FROM api_keys")}
        gone -= {row[0] for row in old.execute("SELECT key_id FROM api_keys")}
        self.done += [f"API key {key_id} stays revoked" for key_id in sorted(gone)]
        known = set(self._db.execute("SELECT tenant, kind, name, issued_before_ms FROM revocations"))
        for tenant, kind, name, before in old.execute(
            "SELECT tenant, kind, name, issued_before_ms FROM revocations"
        ):
            if (tenant, kind, name, before) not in known:
                self.done.append(f"tokens of tenant {tenant} stay revoked: {_tokens(kind, name)}")
        self._db.execute("DELETE FROM api_keys")
        for table in _REGISTERED:
            rows = old.execute(f"SELECT * FROM {table}").fetchall()
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)

    def _erased_logs(self, old: sqlite3.Connection) -> None:
        present = {row[0] for row in old.execute("SELECT topic_id FROM topics")}
        for topic_id, *topic in self._topics():
            if topic_id not in present:
                reset(self._db, _key(topic))
                self.done.append(f"erased again: {describe(address_of(_key(topic)))}")

    def _erased_users(self, old: sqlite3.Connection) -> None:
        """Erase the users whose messages have no author there."""
        users: set[tuple[str, str]] = set()
        find = (
            "SELECT tenant, author_user FROM messages JOIN topics USING (topic_id)"
            " WHERE topic_id = ? AND seq = ? AND author_user <> ''"
        )
        redacted = "SELECT topic_id, seq FROM messages WHERE author_user = '' AND role = ?"
        for key in old.execute(redacted, (_ROLE_USER,)):
            users.update(self._db.execute(find, key))
        for tenant, user in sorted(users):
            self._erase_user(tenant, user)

    def _audit(self, old: sqlite3.Connection) -> None:
        """Keep the audit trail, and erase the users that it names."""
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
        rows = old.execute("SELECT * FROM audit WHERE id > ? ORDER BY id", (last,)).fetchall()
        self._db.executemany("INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for _, _, tenant, _, _, action, target, _, after in rows:
            if action == "EraseUser" and not _was_refused(after):
                self._erase_user(tenant, target)

    def _lost_logs(self, old: sqlite3.Connection) -> None:
        kept = {_key(topic) for _, *topic in self._topics()}
        for *topic, end in old.execute(f"SELECT tenant, agent, platform, kind, target, {END} FROM topics"):
            if end and _key(topic) not in kept:
                self.lost_logs[_key(topic)] = end

    def mark_lost_logs(self) -> None:
        """Begin the logs that are lost as pruned ones, after all others were forked.

        A client that saw such a topic empty would otherwise resume from its start as if nothing was missing.
        """
        self._db.executemany(
            "INSERT INTO topics (tenant, agent, platform, kind, target, epoch, pruned, forked)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((*topic, new_epoch(), end, end) for topic, end in self.lost_logs.items()),
        )

    # From audit entries

    def from_audit(self, entries: Iterable[Mapping[str, Any]], since_ms: int) -> None:
        """Apply the audit entries that the log does not have, in their order.

        The time of the backup alone does not tell which these are: a change is recorded before its commit.
        """
        known = set(self._db.execute("SELECT at_ms, action, tenant, target FROM audit"))
        for entry in sorted(entries, key=lambda each: int(each["at_ms"])):
            at_ms = int(entry["at_ms"])
            record = (at_ms, *(str(entry[name]) for name in ("action", "tenant", "target")))
            is_new = at_ms >= since_ms - _LONGEST_COMMIT_MS and record not in known
            if is_new and not _was_refused(entry.get("after") or ""):
                self._apply(entry)

    def _apply(self, entry: Mapping[str, Any]) -> None:
        action, at_ms = str(entry["action"]), int(entry["at_ms"])
        tenant, target = str(entry["tenant"] or entry["target"]), str(entry["target"])
        times = "SELECT created_ms, updated_ms FROM tenants WHERE tenant = ?"
        created_ms, updated_ms = self._db.execute(times, (tenant,)).fetchone() or (0, 0)
        # A tenant created or changed later than this entry has its state from the replaced database.
        if action == "DeleteTenant" and 0 < created_ms <= at_ms:
            self._erase_tenant(tenant)
        elif action in _STATES and 0 < updated_ms <= at_ms:
            self._set_state(tenant, _STATES[action], at_ms)
        elif action in _NOT_APPLIED and updated_ms <= at_ms:
            self.open.append(f"{action} {target} of tenant {tenant} must be made again")
        elif action == "RevokeTokens":
            self._revoke(tenant, target, at_ms, entry)
        elif action in self._of_target:
            self._of_target[action](tenant, target)

    def _revoke_key(self, tenant: str, key_id: str) -> None:
        delete = "DELETE FROM api_keys WHERE tenant = ? AND key_id = ?"
        if self._db.execute(delete, (tenant, key_id)).rowcount:
            self.done.append(f"API key {key_id} stays revoked")

    def _revoke(self, tenant: str, target: str, at_ms: int, entry: Mapping[str, Any]) -> None:
        """Revoke what an entry names. A name of unknown kind is revoked as a user and as a token's id."""
        details = _object(entry.get("after"))
        before_ms = int(details.get("issued_before_ms") or at_ms)
        kinds: list[tuple[RevocationKind, str]]
        if user := details.get("user"):
            kinds = [(RevocationKind.USER, str(user))]
        elif token_id := details.get("token_id") or details.get("tokenId"):
            kinds = [(RevocationKind.TOKEN_ID, str(token_id))]
        elif details.get("all") or target in ("", "*", "all", tenant):
            kinds = [(RevocationKind.ALL, "")]
        else:
            kinds = [(RevocationKind.USER, target), (RevocationKind.TOKEN_ID, target)]
        for kind, name in kinds:
            issued_before_ms = 0 if kind is RevocationKind.TOKEN_ID else before_ms
            self._db.execute(
                "INSERT INTO revocations VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, kind, name) DO UPDATE"
                " SET issued_before_ms = max(issued_before_ms, excluded.issued_before_ms),"
                " revoked_ms = max(revoked_ms, excluded.revoked_ms)",
                (tenant, int(kind), name, issued_before_ms, at_ms),
            )
            self.done.append(f"tokens of tenant {tenant} stay revoked: {_tokens(kind, name)}")

    def _set_state(self, tenant: str, state: int, at_ms: int) -> None:
        self._db.execute(
            "UPDATE tenants SET state = ?, updated_ms = ? WHERE tenant = ?", (state, at_ms, tenant)
        )
        self.done.append(f"tenant {tenant}: state became {state}")

    def _reset(self, tenant: str, target: str) -> None:
        for _, *topic in self._topics():
            key = _key(topic)
            if key[0] == tenant and describe(address_of(key)) == target:
                reset(self._db, key)
                self.done.append(f"erased again: {target}")

    # Erasures

    def _erase_tenant(self, tenant: str) -> None:
        while erase_tenant(self._db, tenant).cursor is not None:
            pass
        self._db.execute("DELETE FROM tenant_keys WHERE tenant = ?", (tenant,))
        self.lost_logs = {topic: end for topic, end in self.lost_logs.items() if topic[0] != tenant}
        self.done.append(f"tenant {tenant} stays deleted")

    def _erase_user(self, tenant: str, user: str) -> None:
        messages, cursor = 0, None
        while True:
            piece = erase_user(self._db, tenant, user, cursor, self._now_ms, self._encryption(tenant))
            messages += piece.messages
            cursor = piece.cursor
            if cursor is None:
                break
        own = {topic for topic in self.lost_logs if (topic[0], topic[4]) == (tenant, user)}
        self.lost_logs = {topic: end for topic, end in self.lost_logs.items() if topic not in own}
        self.done.append(f"user {user} of tenant {tenant} stays erased ({messages} messages)")

    def _encryption(self, tenant: str) -> Encryption:
        """Return what encrypts a piece of the tenant's entries again. Raises DataKeyError."""
        keys = [key for key in read_tenant_keys(self._db) if key.tenant == tenant]
        encryption = Encryption(self._data_keys if keys else None)
        encryption.load(keys)
        if keys:
            reserved = encryption.reserve([tenant], 2 * SEARCHED_ENTRIES, self._now_ms)
            write_tenant_keys(self._db, reserved)
            encryption.reserved(reserved)
        return encryption

    def _topics(self) -> list[Any]:
        return self._db.execute(
            "SELECT topic_id, tenant, agent, platform, kind, target FROM topics"
        ).fetchall()


_STATES = {"SuspendTenant": int(TENANT_STATE_SUSPENDED), "ResumeTenant": int(TENANT_STATE_ACTIVE)}
#: An audit entry has no secrets, and so not all that these need.
_NOT_APPLIED = frozenset({"CreateTenant", "UpdateTenant", "CreateApiKey"})


def is_successor(old: sqlite3.Connection, restored: sqlite3.Connection) -> bool:
    """Return whether the backup is a part of another database's past.

    Commits are counted again from where a data folder was put back, so the contents must agree, too.
    """
    backup, later = read_state(restored), read_state(old)
    known = {later.log_id: later.commits}
    known |= dict(old.execute("SELECT log_id, commits FROM former_logs"))
    return known.get(backup.log_id, -1) >= backup.commits and not _has_diverged(old, restored)


def _has_diverged(old: sqlite3.Connection, restored: sqlite3.Connection) -> bool:
    """Return whether a database lacks ids, a log, or entries of a log that another has."""
    counters = dict(old.execute("SELECT name, seq FROM sqlite_sequence"))
    rows = restored.execute("SELECT name, seq FROM sqlite_sequence")
    if any(counters.get(name, 0) < seq for name, seq in rows):
        return True
    query = f"SELECT topic_id, epoch, {END}, tenant, agent, platform, kind, target FROM topics"
    former = {topic_id: rest for topic_id, *rest in restored.execute(query)}
    for topic_id, epoch, end, *topic in old.execute(query):
        if (known := former.get(topic_id)) is not None:
            former_epoch, former_end, *former_topic = known
            if topic != former_topic or (epoch == former_epoch and end < former_end):
                return True
    return False


def _key(topic: Any) -> TopicKey:
    tenant, agent, platform, kind, target = topic
    return (tenant, agent, platform, kind, target)


def _tokens(kind: int, name: str) -> str:
    if kind == RevocationKind.ALL:
        return "all"
    return f"user {name}" if kind == RevocationKind.USER else f"token {name}"


def _object(text: object) -> dict[str, Any]:
    """Return a field of an audit entry, which is JSON or its text, as an object."""
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except ValueError:
            text = None
    return text if isinstance(text, dict) else {}


def _was_refused(after: object) -> bool:
    return "error" in _object(after)
