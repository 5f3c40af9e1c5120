-- The log of one router, schema version 2. Reading it with SQL while the router runs is safe: open the
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
    seq         INTEGER NOT NULL,  -- 1, 2, 3, …; the numbers left out are in `events`
    created_ms  INTEGER NOT NULL,  -- Unix time
    role        INTEGER NOT NULL,  -- trunkline.v1.Role: 1 user, 2 agent, 3 system
    author_user TEXT NOT NULL,
    body        BLOB NOT NULL,     -- a serialized trunkline.v1.Message, whole; as it was last changed
    PRIMARY KEY (topic_id, seq)
);

-- What happened in a log besides messages, numbered together with them. The first entry of a log is always
-- a message.
CREATE TABLE events (
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,  -- Unix time
    change      INTEGER NOT NULL,  -- of a message: 1 it ended, 2 was edited, 3 recalled; 0: a user has read
    message_seq INTEGER NOT NULL,  -- the message that changed, or the last one that was read
    user        TEXT NOT NULL,     -- who did it
    body        BLOB NOT NULL,     -- a serialized trunkline.v1.Change without `message`, or a ReadFrame
    PRIMARY KEY (topic_id, seq)
);

-- Messages that are not whole yet, and who may add to them.
CREATE TABLE open_messages (
    topic_id       INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    producer       TEXT NOT NULL,
    producer_epoch INTEGER NOT NULL,  -- rises each time the message is taken up
    PRIMARY KEY (topic_id, seq)
) WITHOUT ROWID;

-- What was added to them since they were opened, a piece a row, in the order of ids.
CREATE TABLE open_deltas (
    delta_id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    deltas   BLOB NOT NULL  -- a serialized trunkline.v1.ReplyDeltas
);
CREATE INDEX open_deltas_by_message ON open_deltas (topic_id, seq);

-- How far users have come in a conversation, as seqs; 0 for nothing.
CREATE TABLE receipts (
    topic_id   INTEGER NOT NULL,
    user       TEXT NOT NULL,
    delivered  INTEGER NOT NULL,
    read       INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,  -- Unix time
    PRIMARY KEY (topic_id, user)
) WITHOUT ROWID;

-- Logs that were reset and whose rows in the tables above are yet to be deleted, piece by piece.
CREATE TABLE erased (
    topic_id INTEGER PRIMARY KEY
);

-- What became of the first entry with a key, for those who send it again. The newest are in `recent_keys`,
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
    seq         INTEGER NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0  -- how often it was delivered and failed
);
CREATE INDEX deliveries_by_agent ON deliveries (tenant, agent);

-- Deliveries that were given up, by the ids that they had. One that is replayed is a delivery again, by a
-- new id.
CREATE TABLE dead_letters (
    delivery_id INTEGER PRIMARY KEY,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    given_up_ms INTEGER NOT NULL  -- Unix time
);
CREATE INDEX dead_letters_by_agent ON dead_letters (tenant, agent);

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
