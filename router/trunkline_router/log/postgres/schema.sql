-- The log of one installation, schema version 1. It may be read with SQL while routers run; keep transactions
-- short. Start with the view `conversation_log`. The tables contain secrets: see `tenants`. With a data key,
-- `body`, `deltas`, `reason` and `settings` may be encrypted: such a value starts with a zero byte, and what
-- remains readable is metadata.

-- One row about the installation.
CREATE TABLE installation (
    id              integer PRIMARY KEY CHECK (id = 1),
    installation_id text NOT NULL,       -- random
    schema_version  integer NOT NULL,
    -- Some log was found to lack entries that were committed: the next owner begins new epochs of all logs.
    is_older_copy   boolean NOT NULL DEFAULT false,
    -- Routers of this schema version, and newer ones, can use the tables.
    usable_since    integer NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- Routers, one row for each time that one of them owned the log. Each write to the log locks its router's row
-- and writes nothing once `alive` is false, which is never taken back.
CREATE TABLE routers (
    -- Microseconds of Unix time: after a failover to a server that lacks rows, no number is given twice.
    incarnation bigint PRIMARY KEY DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    boot_id     text NOT NULL,           -- of the process
    address     text NOT NULL,           -- where it listens
    alive       boolean NOT NULL DEFAULT true,
    started_at  timestamptz NOT NULL DEFAULT now()
);

-- Apart from `routers`, so that renewing a lease never waits for a commit.
CREATE TABLE leases (
    incarnation bigint PRIMARY KEY REFERENCES routers ON DELETE CASCADE,
    until       timestamptz NOT NULL,    -- by this server's clock
    seconds     double precision NOT NULL -- TRUNKLINE_OWNERSHIP_LEASE_S of the router
);

-- Who owns the log: one row. `token` rises with each owner.
CREATE TABLE slots (
    slot        integer PRIMARY KEY,
    incarnation bigint REFERENCES routers,  -- null: nobody
    token       bigint NOT NULL DEFAULT 0
);

-- Commits of each router; the last one of each stays. Tells a router whose connection broke whether its commit
-- happened.
CREATE TABLE commits (
    incarnation bigint NOT NULL,
    batch       bigint NOT NULL,         -- 1, 2, 3, …
    result      jsonb,                   -- of the commit, for the router
    void        boolean NOT NULL DEFAULT false,  -- the number was taken so that its commit cannot happen any more
    PRIMARY KEY (incarnation, batch)
);

-- Ids are reserved in blocks, and never assigned again.
CREATE TABLE id_blocks (
    name     text PRIMARY KEY,           -- topics, deliveries
    reserved bigint NOT NULL             -- every id up to this one may have been assigned
);
INSERT INTO id_blocks VALUES ('topics', 0), ('deliveries', 0);

-- One row per log. Erasing a log deletes its row; the topic's next message inserts a new one.
CREATE TABLE topics (
    topic_id bigint PRIMARY KEY,
    tenant   text COLLATE "C" NOT NULL,
    agent    text COLLATE "C" NOT NULL,  -- empty for broader addresses
    platform text COLLATE "C" NOT NULL,  -- empty for broader addresses
    kind     integer NOT NULL,           -- of the target: 0 none, 1 person, 2 group, 3 user
    target   text COLLATE "C" NOT NULL,
    epoch    text COLLATE "C" NOT NULL UNIQUE,
    pruned   bigint NOT NULL DEFAULT 0,  -- entries up to this seq were erased by the tenant's retention
    forked   bigint NOT NULL DEFAULT 0,  -- entries up to this seq are of `former_epochs`
    UNIQUE (tenant, agent, platform, kind, target)
);

-- Epochs of a log before its present one, which began when later entries were lost, as by a failover to a
-- standby that lacked them. Ids of messages keep the epoch that they were written in. Positions of these epochs
-- are no longer valid.
CREATE TABLE former_epochs (
    topic_id  bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq  bigint NOT NULL,
    epoch     text COLLATE "C" NOT NULL UNIQUE,
    PRIMARY KEY (topic_id, first_seq)
);

CREATE TABLE messages (
    topic_id    bigint NOT NULL,
    seq         bigint NOT NULL,         -- 1, 2, 3, …; missing numbers are in `events`
    created_ms  bigint NOT NULL,         -- Unix time
    role        integer NOT NULL,        -- trunkline.v1.Role: 1 user, 2 agent, 3 system
    author_user text NOT NULL,           -- empty without a user, and after the user was erased
    body        bytea NOT NULL,          -- a serialized trunkline.v1.Message in its present form
    crc         bigint NOT NULL,         -- CRC-32 of topic_id, seq and body
    PRIMARY KEY (topic_id, seq)
);

-- Other entries of a log, numbered together with its messages. The first entry ever written to a log is a
-- message.
CREATE TABLE events (
    topic_id    bigint NOT NULL,
    seq         bigint NOT NULL,
    created_ms  bigint NOT NULL,         -- Unix time
    change      integer NOT NULL,        -- of a message: 1 ended, 2 edited, 3 recalled; 0: read by a user
    message_seq bigint NOT NULL,         -- the message that changed, or the last one read; it may be pruned
    user_name   text NOT NULL,           -- the author; empty without a user, and after the user was erased
    body        bytea NOT NULL,          -- a serialized trunkline.v1.Change without `message`, or a ReadFrame
    crc         bigint NOT NULL,         -- as in `messages`
    PRIMARY KEY (topic_id, seq)
);

-- Open messages and their producers.
CREATE TABLE open_messages (
    topic_id       bigint NOT NULL,
    seq            bigint NOT NULL,
    producer       text NOT NULL,
    producer_epoch bigint NOT NULL,      -- rises with each takeover of the message
    PRIMARY KEY (topic_id, seq)
);

-- Deltas of open messages, one checkpoint per row, in the order of ids.
CREATE TABLE open_deltas (
    delta_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic_id bigint NOT NULL,
    seq      bigint NOT NULL,
    deltas   bytea NOT NULL              -- a serialized trunkline.v1.ReplyDeltas
);
CREATE INDEX open_deltas_by_message ON open_deltas (topic_id, seq);

-- Positions up to which users received and read a conversation, as seqs; 0 for none.
CREATE TABLE receipts (
    topic_id   bigint NOT NULL,
    user_name  text COLLATE "C" NOT NULL,
    delivered  bigint NOT NULL,
    read       bigint NOT NULL,
    updated_ms bigint NOT NULL,          -- Unix time
    PRIMARY KEY (topic_id, user_name)
);

-- Messages whose replies were cancelled, or that were recalled: a reply that is opened later is cancelled at
-- once. Kept as long as idempotency keys.
CREATE TABLE cancelled_messages (
    topic_id     bigint NOT NULL,
    seq          bigint NOT NULL,
    cancelled_ms bigint NOT NULL,        -- Unix time
    PRIMARY KEY (topic_id, seq)
);
CREATE INDEX cancelled_messages_by_time ON cancelled_messages (cancelled_ms);

-- Erased logs whose rows in the tables above still have to be deleted, piece by piece.
CREATE TABLE erased (
    topic_id bigint PRIMARY KEY
);

-- Result of the first entry with an idempotency key, returned to repeats.
CREATE TABLE idempotency (
    key         bytea PRIMARY KEY,
    digest      bytea NOT NULL,
    epoch       text NOT NULL,
    seq         bigint NOT NULL,
    connections bigint NOT NULL,
    created_ms  bigint NOT NULL          -- Unix time
);

-- Messages for an agent that no worker has settled yet. Ids rise, for each agent, forever.
CREATE TABLE deliveries (
    delivery_id bigint PRIMARY KEY,
    tenant      text COLLATE "C" NOT NULL,
    agent       text COLLATE "C" NOT NULL,
    topic_id    bigint NOT NULL,
    seq         bigint NOT NULL,
    attempts    bigint NOT NULL DEFAULT 0,  -- failed deliveries so far
    -- Unix time after which it is not delivered, unless there were attempts; 0 for never.
    expires_ms  bigint NOT NULL DEFAULT 0
);
CREATE INDEX deliveries_by_agent ON deliveries (tenant, agent, delivery_id);

-- Dead letters, by the ids of their former deliveries. A replay turns one into a delivery with a new id.
CREATE TABLE dead_letters (
    delivery_id bigint PRIMARY KEY,
    tenant      text COLLATE "C" NOT NULL,
    agent       text COLLATE "C" NOT NULL,
    topic_id    bigint NOT NULL,
    seq         bigint NOT NULL,
    attempts    bigint NOT NULL,
    reason      bytea NOT NULL,          -- UTF-8, unless encrypted
    given_up_ms bigint NOT NULL          -- Unix time
);
CREATE INDEX dead_letters_by_agent ON dead_letters (tenant, agent, delivery_id);

-- Declared tenants. Unless routers have a data key, `settings` contains their secrets in plain form: anyone who
-- can read this table, or a copy of it, can sign tokens for their clients.
CREATE TABLE tenants (
    tenant     text COLLATE "C" PRIMARY KEY,
    state      integer NOT NULL,         -- trunkline.v1.TenantState: 1 active, 2 suspended, 3 being erased
    settings   bytea NOT NULL,           -- a serialized trunkline.v1.TenantSettings
    created_ms bigint NOT NULL,          -- Unix time
    updated_ms bigint NOT NULL           -- Unix time
);

-- Keys that encrypt tenants' settings and messages. Each is encrypted by a data key, which is not in this
-- database. Without a tenant's rows here, what they encrypted is lost.
CREATE TABLE tenant_keys (
    tenant     text COLLATE "C" NOT NULL,  -- empty for the key of the digests of contents in `idempotency`
    generation bigint NOT NULL,          -- the highest encrypts; encrypted values name theirs
    data_key   text NOT NULL,            -- id of the data key
    wrapped    bytea NOT NULL,           -- nonce and AES-GCM ciphertext
    reserved   bigint NOT NULL,          -- upper bound of the values encrypted so far
    created_ms bigint NOT NULL,          -- Unix time
    PRIMARY KEY (tenant, generation)
);

-- API keys. Their secrets are not stored.
CREATE TABLE api_keys (
    key_id     text COLLATE "C" PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    name       text NOT NULL,
    digest     bytea NOT NULL,           -- SHA-256 of the secret
    scopes     integer[] NOT NULL,       -- values of trunkline.v1.Scope
    created_ms bigint NOT NULL,          -- Unix time
    used_ms    bigint NOT NULL           -- Unix time; 0 for never
);

-- Revoked tokens of clients.
CREATE TABLE revocations (
    tenant           text COLLATE "C" NOT NULL,
    kind             integer NOT NULL,   -- 1 tokens of a user, 2 one token, 3 all tokens
    name             text COLLATE "C" NOT NULL,  -- the user or the token's id; empty for all
    issued_before_ms bigint NOT NULL,    -- Unix time: tokens issued later are valid; 0 for one token
    revoked_ms       bigint NOT NULL,    -- Unix time
    PRIMARY KEY (tenant, kind, name)
);

-- Administrative calls: who changed what. Rows outlive their tenant, and contain no secrets and no content of
-- messages.
CREATE TABLE audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms  bigint NOT NULL,              -- Unix time
    tenant text COLLATE "C" NOT NULL,    -- empty if the call concerned no tenant
    actor  text NOT NULL,                -- as `key:<id>`, `operator`, `loopback`, `tenants-file` or `anonymous`
    source text NOT NULL,                -- address of the caller, and of the edge if one passed the call on
    action text NOT NULL,                -- the RPC, as `CreateTenant`; of a refused attempt `CreateTenant:refused`
    target text NOT NULL,                -- name of the tenant, key, user, conversation, …
    before text NOT NULL,                -- JSON; empty for none
    after  text NOT NULL                 -- JSON; empty for none
);
CREATE INDEX audit_by_tenant ON audit (tenant, id);

-- For people: the messages of conversations, one per row; their metadata, whether or not they are encrypted.
CREATE VIEW conversation_log AS
SELECT
    t.tenant,
    t.agent,
    t.platform,
    CASE t.kind WHEN 1 THEN 'person' ELSE 'group' END AS conversation_kind,
    t.target AS conversation_id,
    m.seq,
    to_timestamp(m.created_ms / 1000.0) AS created_at,
    CASE m.role WHEN 1 THEN 'user' WHEN 2 THEN 'agent' WHEN 3 THEN 'system' ELSE '' END AS role,
    m.author_user AS "user",
    CASE WHEN m.seq > t.forked THEN t.epoch ELSE (
        SELECT f.epoch FROM former_epochs AS f
        WHERE f.topic_id = t.topic_id AND m.seq BETWEEN f.first_seq AND f.last_seq
    ) END || '-' || m.seq AS message_id,
    get_byte(m.body, 0) = 0 AS encrypted
FROM topics AS t
JOIN messages AS m USING (topic_id)
WHERE t.kind IN (1, 2);

INSERT INTO installation (id, installation_id, schema_version) VALUES (1, gen_random_uuid()::text, 1);
INSERT INTO slots (slot) VALUES (0);
