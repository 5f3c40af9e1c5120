-- The log of one router, schema version 1. Reading it with SQL while the router runs is safe: open the
-- file read-only, keep transactions short. Start with the view `conversation_log`.

-- One row per log that holds messages. Erasing a log removes its row; the next message makes a new one.
CREATE TABLE topics (
    -- AUTOINCREMENT: the number of an erased log never comes back, so its leftovers stay nobody's.
    topic_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   TEXT NOT NULL,
    agent    TEXT NOT NULL,     -- empty where the address is broader
    platform TEXT NOT NULL,     -- empty where the address is broader
    kind     INTEGER NOT NULL,  -- of target: 0 none, 1 person, 2 group, 3 user
    target   TEXT NOT NULL,
    epoch    TEXT NOT NULL UNIQUE,
    UNIQUE (tenant, agent, platform, kind, target)
);

-- A rowid table beside an index of its own: messages of many topics then arrive at the end of one
-- B-tree, and what is touched all over the file are small index pages only. Twice to three times the
-- rows/s of a table clustered by (topic_id, seq).
CREATE TABLE messages (
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,  -- 1, 2, 3, … without gaps
    created_ms  INTEGER NOT NULL,  -- Unix time
    role        INTEGER NOT NULL,  -- trunkline.v1.Role: 1 user, 2 agent, 3 system
    author_user TEXT NOT NULL,
    body        BLOB NOT NULL,     -- a serialized trunkline.v1.Message, whole
    PRIMARY KEY (topic_id, seq)
);

-- Logs that were reset and whose messages are yet to be deleted, piece by piece.
CREATE TABLE erased (
    topic_id INTEGER PRIMARY KEY
);

-- What became of the first message with a key, for those who send it again. The newest are in `recent_keys`,
-- in the order of their arrival, and are carried over into `idempotency` many at a time; meanwhile, a key
-- may be in both.
CREATE TABLE recent_keys (
    id          INTEGER PRIMARY KEY,
    key         BLOB NOT NULL,
    digest      BLOB NOT NULL,
    epoch       TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    connections INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL
);
CREATE TABLE idempotency (
    key         BLOB PRIMARY KEY,
    digest      BLOB NOT NULL,
    epoch       TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    connections INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL
) WITHOUT ROWID;

-- Messages that are work for an agent and that no worker has settled.
CREATE TABLE deliveries (
    -- AUTOINCREMENT: ids rise for ever, even when all rows were deleted.
    delivery_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL
);
CREATE INDEX deliveries_by_agent ON deliveries (tenant, agent);

-- For people: what was said in conversations, one row a message.
CREATE VIEW conversation_log AS
SELECT
    t.tenant,
    t.agent,
    t.platform,
    CASE t.kind WHEN 1 THEN 'person' ELSE 'group' END AS conversation_kind,
    t.target AS conversation_id,
    m.seq,
    strftime('%Y-%m-%dT%H:%M:%fZ', m.created_ms / 1000.0, 'unixepoch') AS created_at,
    CASE m.role WHEN 1 THEN 'user' WHEN 2 THEN 'agent' WHEN 3 THEN 'system' ELSE '' END AS role,
    m.author_user AS user,
    t.epoch || '-' || m.seq AS message_id
FROM topics AS t
JOIN messages AS m ON m.topic_id = t.topic_id
WHERE t.kind IN (1, 2);
