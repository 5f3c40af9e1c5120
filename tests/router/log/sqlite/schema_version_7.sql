-- The log of one router, schema version 7. It may be read with SQL while the router runs: open the file
-- read-only and keep transactions short. Start with the view `conversation_log`. The file contains secrets:
-- see `tenants`. With a data key, `body`, `deltas`, `reason` and `settings` may be encrypted: such a value
-- starts with a zero byte, and what remains readable is metadata.

-- One row per log. Erasing a log deletes its row; the topic's next message inserts a new one.
CREATE TABLE topics (
    -- AUTOINCREMENT: the id of an erased log is never used again, so its remaining rows stay unreachable.
    topic_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   TEXT NOT NULL,
    agent    TEXT NOT NULL,     -- empty for broader addresses
    platform TEXT NOT NULL,     -- empty for broader addresses
    kind     INTEGER NOT NULL,  -- of the target: 0 none, 1 person, 2 group, 3 user
    target   TEXT NOT NULL,
    epoch    TEXT NOT NULL UNIQUE,
    pruned   INTEGER NOT NULL DEFAULT 0,  -- entries up to this seq were erased by the tenant's retention
    forked   INTEGER NOT NULL DEFAULT 0,  -- entries up to this seq are of `former_epochs`
    UNIQUE (tenant, agent, platform, kind, target)
);

-- Epochs of a log before its present one, which began when later entries were lost, as by a restored backup.
-- Ids of messages keep the epoch that they were written in. Positions of these epochs are no longer valid.
CREATE TABLE former_epochs (
    topic_id  INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    epoch     TEXT NOT NULL UNIQUE,
    PRIMARY KEY (topic_id, first_seq)
) WITHOUT ROWID;

-- One row about the file itself. The file `<name>.mark` beside it repeats the number of commits: if this one is
-- lower, an older file was put in place, or commits were lost.
CREATE TABLE log_state (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    log_id  TEXT NOT NULL,    -- random; copies have the same until one of them is forked
    commits INTEGER NOT NULL  -- that changed anything
);
INSERT OR IGNORE INTO log_state VALUES (1, lower(hex(randomblob(8))), 0);

-- Files that this one began as, each with the number of its commits that are in this one.
CREATE TABLE former_logs (
    log_id  TEXT NOT NULL PRIMARY KEY,
    commits INTEGER NOT NULL
) WITHOUT ROWID;

-- A rowid table with a separate index: messages of all topics are appended to one B-tree, and only small
-- index pages are written all over the file. Two to three times the rows/s of a table clustered by
-- (topic_id, seq).
CREATE TABLE messages (
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,  -- 1, 2, 3, …; missing numbers are in `events`
    created_ms  INTEGER NOT NULL,  -- Unix time
    role        INTEGER NOT NULL,  -- trunkline.v1.Role: 1 user, 2 agent, 3 system
    author_user TEXT NOT NULL,     -- empty without a user, and after the user was erased
    body        BLOB NOT NULL,     -- a serialized trunkline.v1.Message in its present form
    crc         INTEGER,           -- CRC-32 of topic_id, seq and body; NULL in rows of older versions
    PRIMARY KEY (topic_id, seq)
);

-- Other entries of a log, numbered together with its messages. The first entry ever written to a
-- log is a message.
CREATE TABLE events (
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,  -- Unix time
    change      INTEGER NOT NULL,  -- of a message: 1 ended, 2 edited, 3 recalled; 0: read by a user
    message_seq INTEGER NOT NULL,  -- the message that changed, or the last one read; it may be pruned
    user        TEXT NOT NULL,     -- the author; empty without a user, and after the user was erased
    body        BLOB NOT NULL,     -- a serialized trunkline.v1.Change without `message`, or a ReadFrame
    crc         INTEGER,           -- as in `messages`
    PRIMARY KEY (topic_id, seq)
);

-- Open messages and their producers.
CREATE TABLE open_messages (
    topic_id       INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    producer       TEXT NOT NULL,
    producer_epoch INTEGER NOT NULL,  -- rises with each takeover of the message
    PRIMARY KEY (topic_id, seq)
) WITHOUT ROWID;

-- Deltas of open messages, one checkpoint per row, in the order of ids.
CREATE TABLE open_deltas (
    delta_id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    deltas   BLOB NOT NULL  -- a serialized trunkline.v1.ReplyDeltas
);
CREATE INDEX open_deltas_by_message ON open_deltas (topic_id, seq);

-- Positions up to which users received and read a conversation, as seqs; 0 for none.
CREATE TABLE receipts (
    topic_id   INTEGER NOT NULL,
    user       TEXT NOT NULL,
    delivered  INTEGER NOT NULL,
    read       INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,  -- Unix time
    PRIMARY KEY (topic_id, user)
) WITHOUT ROWID;

-- Messages whose replies were cancelled, or that were recalled: a reply that is opened later is cancelled at
-- once. Kept as long as idempotency keys.
CREATE TABLE cancelled_messages (
    topic_id     INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    cancelled_ms INTEGER NOT NULL,  -- Unix time
    PRIMARY KEY (topic_id, seq)
) WITHOUT ROWID;
CREATE INDEX cancelled_messages_by_time ON cancelled_messages (cancelled_ms);

-- Erased logs whose rows in the tables above still have to be deleted, piece by piece.
CREATE TABLE erased (
    topic_id INTEGER PRIMARY KEY
);

-- Result of the first entry with an idempotency key, returned to repeats. The newest are in `recent_keys`, in
-- the order of arrival, and move to `idempotency` many at a time; meanwhile a key may be in both.
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

-- Messages for an agent that no worker has settled yet.
CREATE TABLE deliveries (
    -- AUTOINCREMENT: ids rise forever, even after all rows were deleted.
    delivery_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    topic_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0  -- failed deliveries so far
);
CREATE INDEX deliveries_by_agent ON deliveries (tenant, agent);

-- Dead letters, by the ids of their former deliveries. A replay turns one into a delivery with a new id.
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

-- Declared tenants. Unless the router has a data key, `settings` contains their secrets in plain form: anyone
-- who can read this file, or a copy of it, can sign tokens for their clients.
CREATE TABLE tenants (
    tenant     TEXT NOT NULL PRIMARY KEY,
    state      INTEGER NOT NULL,  -- trunkline.v1.TenantState: 1 active, 2 suspended, 3 being erased
    settings   BLOB NOT NULL,     -- a serialized trunkline.v1.TenantSettings
    created_ms INTEGER NOT NULL,  -- Unix time
    updated_ms INTEGER NOT NULL   -- Unix time
);

-- Keys that encrypt tenants' settings and messages. Each is encrypted by a data key, which is not in this
-- file. Without a tenant's rows here, what they encrypted is lost.
CREATE TABLE tenant_keys (
    tenant     TEXT NOT NULL,     -- empty for the key of the digests of contents in `recent_keys`
    generation INTEGER NOT NULL,  -- the highest encrypts; encrypted values name theirs
    data_key   TEXT NOT NULL,     -- id of the data key
    wrapped    BLOB NOT NULL,     -- nonce and AES-GCM ciphertext
    reserved   INTEGER NOT NULL,  -- upper bound of the values encrypted so far
    created_ms INTEGER NOT NULL,  -- Unix time
    PRIMARY KEY (tenant, generation)
) WITHOUT ROWID;

-- API keys. Their secrets are not stored.
CREATE TABLE api_keys (
    key_id     TEXT NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL,     -- SHA-256 of the secret
    scopes     TEXT NOT NULL,     -- values of trunkline.v1.Scope, as a JSON array
    created_ms INTEGER NOT NULL,  -- Unix time
    used_ms    INTEGER NOT NULL   -- Unix time; 0 for never
);

-- Revoked tokens of clients.
CREATE TABLE revocations (
    tenant           TEXT NOT NULL,
    kind             INTEGER NOT NULL,  -- 1 tokens of a user, 2 one token, 3 all tokens
    name             TEXT NOT NULL,     -- the user or the token's id; empty for all
    issued_before_ms INTEGER NOT NULL,  -- Unix time: tokens issued later are valid; 0 for one token
    revoked_ms       INTEGER NOT NULL,  -- Unix time
    PRIMARY KEY (tenant, kind, name)
) WITHOUT ROWID;

-- Administrative calls: who changed what. Rows outlive their tenant, and contain no secrets and no content of
-- messages.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms  INTEGER NOT NULL,  -- Unix time
    tenant TEXT NOT NULL,     -- empty if the call concerned no tenant
    actor  TEXT NOT NULL,     -- as `key:<id>`, `operator`, `loopback`, `tenants-file` or `anonymous`
    source TEXT NOT NULL,     -- address of the caller, and of the edge if one passed the call on
    action TEXT NOT NULL,     -- the RPC, as `CreateTenant`; of a refused attempt `CreateTenant:refused`
    target TEXT NOT NULL,     -- name of the tenant, key, user, conversation, …
    before TEXT NOT NULL,     -- JSON; empty for none
    after  TEXT NOT NULL      -- JSON; empty for none
);
CREATE INDEX audit_by_tenant ON audit (tenant);

-- For people: the messages of conversations, one per row; their metadata, whether or not they are encrypted.
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
    CASE WHEN m.seq > t.forked THEN t.epoch ELSE (
        SELECT f.epoch FROM former_epochs AS f
        WHERE f.topic_id = t.topic_id AND m.seq BETWEEN f.first_seq AND f.last_seq
    ) END || '-' || m.seq AS message_id,
    hex(substr(m.body, 1, 1)) = '00' AS encrypted
FROM topics AS t
JOIN messages AS m ON m.topic_id = t.topic_id
WHERE t.kind IN (1, 2);
