-- Applies all of a plan or nothing. Everything that can fail does so before the audit records the plan as committed: the
-- types of the keys and the stored values are checked, and each write command is tried on the plan's record. The size of
-- the audit is limited. Nothing fails after that.
--
-- KEYS: the config hash, the plan's record, the audit.
-- ARGV: plan key, payload hash, ttl in ms, stage, source, microseconds so far, number of mutations, maximum of replaced
-- bytes, maximum of audit entries, '1' if an expectation does not hold, number of config keys that were read to check
-- expectations; for each of these keys its name and the value that was read; then for each config key that the plan
-- changes its name and its new value.
-- A value is '+' and the text, or '-' for none.
local config, plan, audit = KEYS[1], KEYS[2], KEYS[3]
local key, payload, ttl, stage, source, micros, mutations = unpack(ARGV, 1, 7)
local most_bytes, most_entries, unexpected, looked_at = tonumber(ARGV[8]), ARGV[9], ARGV[10], tonumber(ARGV[11])
local CHUNK = 1000

for at, wanted in ipairs({'hash', 'hash', 'stream'}) do
  local found = redis.call('TYPE', KEYS[at])['ok']
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE a key of the plan holds another type')
  end
end

local function finish(status, refusal)
  local id = redis.call('XADD', audit, 'MAXLEN', most_entries, '*', 'key', key, 'action', 'apply', 'status', status,
    'stage', stage, 'source', source, 'micros', micros, 'mutations', mutations, 'payload', payload, 'error', refusal)
  return {refusal == '' and status or refusal}, id
end

local known = redis.call('HMGET', plan, ':payload', ':rolled_back')
if known[1] then
  if known[1] ~= payload then return finish('failed', 'other_payload') end
  if known[2] then return finish('failed', 'rolled_back') end
  return finish('replayed', '')
end

local at = 12
for _ = 1, looked_at do
  local found = redis.call('HGET', config, ARGV[at])
  if (found and '+' .. found or '-') ~= ARGV[at + 1] then return {'look_again'} end
  at = at + 2
end
if unexpected == '1' then return finish('failed', 'unexpected') end

local before, bytes = {}, 0
for first = at, #ARGV, 2 * CHUNK do
  local names = {}
  for n = first, math.min(first + 2 * CHUNK - 2, #ARGV), 2 do names[#names + 1] = ARGV[n] end
  for n, found in ipairs(redis.call('HMGET', config, unpack(names))) do
    before[#before + 1] = found and '+' .. found or '-'
    bytes = bytes + #names[n] + (found and #found or 0)
  end
end
if bytes > most_bytes then return finish('failed', 'too_large') end

-- A missing permission or a full memory stops the script here. HSET comes first, because Redis does not stop a script for
-- full memory once it has written. What a stopped script wrote expires.
redis.call('HSET', plan, ':mutations', mutations)
redis.call('PEXPIRE', plan, ttl)
redis.call('HDEL', plan, ':mutations')
local reply, id = finish('committed', '')
-- The id of an audit entry begins with the server's time in milliseconds.
redis.call('HSET', plan, ':payload', payload, ':mutations', mutations, ':stage', stage, ':applied',
  string.match(id, '^%d+'))
local nth = 0
for first = at, #ARGV, 2 * CHUNK do
  local record, sets, deletes = {}, {}, {}
  for n = first, math.min(first + 2 * CHUNK - 2, #ARGV), 2 do
    local name, after = ARGV[n], ARGV[n + 1]
    nth = nth + 1
    record[#record + 1] = 'b' .. name
    record[#record + 1] = before[nth]
    record[#record + 1] = 'a' .. name
    record[#record + 1] = after
    if after == '-' then
      deletes[#deletes + 1] = name
    else
      sets[#sets + 1] = name
      sets[#sets + 1] = string.sub(after, 2)
    end
  end
  redis.call('HSET', plan, unpack(record))
  if #sets > 0 then redis.call('HSET', config, unpack(sets)) end
  if #deletes > 0 then redis.call('HDEL', config, unpack(deletes)) end
end
redis.call('PEXPIRE', plan, ttl)
return reply
