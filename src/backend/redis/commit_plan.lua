-- Makes the changes of a plan and adds its audit entry, or does nothing: the reply is the error CONFLICT if a value that
-- the changes were decided from is not what it was. Each write command is tried before the first change: a missing
-- permission or a full memory stops the script there.
--
-- KEYS: the config hash, the plan's record, the audit.
-- ARGV: the record's time to live in ms, or nothing to keep it; then lists, each with its length first:
-- fields of the record and their expected values, config keys and their expected values, arguments of XADD,
-- new fields of the record, config keys and their new values.
-- A value of the first two lists and of the last is '+' and the text, or '-' for none.
local config, plan, audit = KEYS[1], KEYS[2], KEYS[3]
local ttl, last = ARGV[1], 1

-- The next list, in parts that fit the stack.
local function parts()
  local from, to = last + 2, last + 1 + ARGV[last + 1]
  last = to
  return function()
    if from > to then return nil end
    local part = {unpack(ARGV, from, math.min(from + 1999, to))}
    from = from + 2000
    return part
  end
end

local function is_as_expected(key)
  local is_same = true
  for part in parts() do
    local names = {}
    for n = 1, #part, 2 do names[#names + 1] = part[n] end
    for n, found in ipairs(redis.call('HMGET', key, unpack(names))) do
      is_same = is_same and (found and '+' .. found or '-') == part[2 * n]
    end
  end
  return is_same
end

if not (is_as_expected(plan) and is_as_expected(config)) then
  return redis.error_reply('CONFLICT the plan was decided from values that have changed')
end
local entry, record, changes = parts(), parts(), parts()

local fields = record()
if fields then
  -- HSET comes first: Redis does not stop a script for full memory once it has written.
  local payload = redis.call('HMGET', plan, ':payload')[1]
  redis.call('HSET', plan, payload and ':payload' or ':attempt', payload or '')
  local expires = ttl ~= '' and redis.pcall('PEXPIRE', plan, ttl) or {}
  local deletes = redis.pcall('HDEL', plan, ':attempt')
  if type(deletes) == 'table' then
    if ttl ~= '' then redis.pcall('PEXPIRE', plan, 0) end
    return deletes
  end
  if type(expires) == 'table' and expires.err then return expires end
end
local id = redis.call('XADD', audit, unpack(entry()))
if ttl ~= '' then redis.call('HSET', plan, ':applied', id) end
while fields do
  redis.call('HSET', plan, unpack(fields))
  fields = record()
end
if ttl ~= '' then redis.call('PEXPIRE', plan, ttl) end
for part in changes do
  local sets, deletes = {}, {}
  for n = 1, #part, 2 do
    if part[n + 1] == '-' then
      deletes[#deletes + 1] = part[n]
    else
      sets[#sets + 1] = part[n]
      sets[#sets + 1] = string.sub(part[n + 1], 2)
    end
  end
  if #sets > 0 then redis.call('HSET', config, unpack(sets)) end
  if #deletes > 0 then redis.call('HDEL', config, unpack(deletes)) end
end
return redis.status_reply('OK')
