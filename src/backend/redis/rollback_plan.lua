-- Restores all values that a plan replaced, or none. Everything that can fail does so before the audit records the
-- rollback as committed: the stored values are checked, and each write command is tried on the plan's record.
--
-- KEYS: the config hash, the plan's record, the audit.
-- ARGV: plan key, source, microseconds so far, maximum of audit entries, the action: 'rollback' or 'forced_rollback'.
-- A value in the record is '+' and the text, or '-' for none.
local config, plan, audit = KEYS[1], KEYS[2], KEYS[3]
local key, source, micros, most_entries, action = unpack(ARGV)
local CHUNK = 1000

for at, wanted in ipairs({'hash', 'hash', 'stream'}) do
  local found = redis.call('TYPE', KEYS[at])['ok']
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE a key of the plan holds another type')
  end
end

local about, before, after, names = {}, {}, {}, {}
local record = redis.call('HGETALL', plan)
for n = 1, #record, 2 do
  local kind, name, text = string.sub(record[n], 1, 1), string.sub(record[n], 2), record[n + 1]
  if kind == 'b' then before[name] = text
  elseif kind == 'a' then
    after[name] = text
    names[#names + 1] = name
  else about[name] = text end
end

local function finish(status, refusal)
  redis.call('XADD', audit, 'MAXLEN', most_entries, '*', 'key', key, 'action', action, 'status', status,
    'stage', about['stage'] or '', 'source', source, 'micros', micros, 'mutations', about['mutations'] or '0',
    'payload', about['payload'] or '', 'error', refusal)
  return {refusal == '' and status or refusal}
end

if #record == 0 then return finish('failed', 'not_found') end
if about['rolled_back'] then return finish('replayed', '') end

if action ~= 'forced_rollback' then
  local changed = {}
  for first = 1, #names, CHUNK do
    local last = math.min(first + CHUNK - 1, #names)
    for n, found in ipairs(redis.call('HMGET', config, unpack(names, first, last))) do
      local name = names[first + n - 1]
      if (found and '+' .. found or '-') ~= after[name] then changed[#changed + 1] = name end
    end
  end
  if #changed > 0 then
    local reply = finish('failed', 'changed')
    for _, name in ipairs(changed) do reply[#reply + 1] = name end
    return reply
  end
end

-- A missing permission or a full memory stops the script here, before it changes anything.
redis.call('HSET', plan, ':payload', about['payload'])
redis.call('HDEL', plan, ':rolled_back')
local reply = finish('committed', '')
for first = 1, #names, CHUNK do
  local sets, deletes = {}, {}
  for n = first, math.min(first + CHUNK - 1, #names) do
    local name = names[n]
    if before[name] == '-' then
      deletes[#deletes + 1] = name
    else
      sets[#sets + 1] = name
      sets[#sets + 1] = string.sub(before[name], 2)
    end
  end
  if #sets > 0 then redis.call('HSET', config, unpack(sets)) end
  if #deletes > 0 then redis.call('HDEL', config, unpack(deletes)) end
end
redis.call('HSET', plan, ':rolled_back', '1')
return reply
