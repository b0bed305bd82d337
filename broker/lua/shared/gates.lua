-- What is counted beside a node's own resources: tokens of consumable resources, and jobs at once of a queue or of a
-- job definition. All of it is taken when a job is leased, and given back when its lease is given up.
-- K.holds counts what is held now: `q:<queue>` jobs, `v:<queue>` milli-vCPU, `d:<definition>` jobs; K.holds_since has
-- when the last of those jobs was claimed, where there is a limit.

local function held_now(field) return tonumber(redis.call('HGET', K.holds, field) or 0) end

local function count_held(field, by)
  if redis.call('HINCRBY', K.holds, field, by) <= 0 then
    redis.call('HDEL', K.holds, field)
    redis.call('HDEL', K.holds_since, field)
  end
end

-- {{name, quantity}, …} by name, from a record's `tokens`
local function tokens_of(text)
  local found = {}
  for name, n in pairs(cjson.decode(text)) do found[#found + 1] = {name, tonumber(n)} end
  table.sort(found, function(a, b) return a[1] < b[1] end)
  return found
end

-- How many of a consumable resource may be taken; of one that is gone, none.
local function available(name)
  local h = redis.call('HMGET', K.consumable(name), 'total', 'held')
  return (tonumber(h[1]) or 0) - (tonumber(h[2]) or 0)
end

local function room_of_definition(name)
  local most = tonumber(redis.call('HGET', K.limits, name))
  return most and most - held_now('d:' .. name) or math.huge
end

-- Whether a class may be claimed from. seen: what this call has read already; forget it when a gated job is leased.
local function open_gates(s, seen)
  for _, token in ipairs(s.tokens) do
    local left = seen[token[1]] or available(token[1])
    seen[token[1]] = left
    if left < token[2] then return false end
  end
  if not s.definition then return true end
  local key = 'd:' .. s.definition
  seen[key] = seen[key] or room_of_definition(s.definition)
  return seen[key] > 0
end

-- What a queue with shares may still take of the milli-vCPUs, with some kept for shares that are not active yet; all of
-- it when it runs nothing, or a large job could never start.
local function unreserved(queue, fair)
  if fair.reservation <= 0 or not fair.most then return math.huge end
  local held = held_now('v:' .. queue)
  if held == 0 then return math.huge end
  return fair.most * (1 - fair.reservation ^ redis.call('HLEN', K.share_open(queue))) - held
end

local function take_tokens(text)
  local t = num(now())
  for _, token in ipairs(tokens_of(text)) do
    local key = K.consumable(token[1])
    redis.call('HINCRBY', key, 'held', token[2])
    redis.call('HINCRBY', key, 'jobs', 1)
    redis.call('HSET', key, 'changed', t)
  end
end

-- used: the job has run, so that what does not come back is gone.
local function give_tokens(text, used)
  local t = num(now())
  for _, token in ipairs(tokens_of(text)) do
    local key = K.consumable(token[1])
    local h = redis.call('HMGET', key, 'type', 'total')
    if h[1] then
      redis.call('HINCRBY', key, 'held', -token[2])
      redis.call('HINCRBY', key, 'jobs', -1)
      redis.call('HSET', key, 'changed', t)
      if used and h[1] == 'NON_REPLENISHABLE' then
        redis.call('HSET', key, 'total', num(math.max(0, tonumber(h[2]) - token[2])))
      end
    end
  end
end

local function gate_opened(queue)
  redis.call('INCR', K.gates)
  redis.call('PUBLISH', K.wake, queue)
end

-- A leased job takes all that it needs of these at once. h: queue, mc, share, tokens, definition.
local function take_hold(h)
  count_held('q:' .. h.queue, 1)
  if policy_of(h.queue).max_concurrent then redis.call('HSET', K.holds_since, 'q:' .. h.queue, num(now())) end
  count_held('v:' .. h.queue, h.mc)
  if h.share then share_runs(h.queue, h.share, h.mc) end
  if h.tokens then take_tokens(h.tokens) end
  if h.definition then
    count_held('d:' .. h.definition, 1)
    redis.call('HSET', K.holds_since, 'd:' .. h.definition, num(now()))
  end
end

local function give_hold(h, used)
  count_held('q:' .. h.queue, -1)
  count_held('v:' .. h.queue, -h.mc)
  if h.share then share_runs(h.queue, h.share, -h.mc) end
  if h.tokens then give_tokens(h.tokens, used) end
  if h.definition then count_held('d:' .. h.definition, -1) end
  local policy = policy_of(h.queue)
  if h.tokens or h.definition or policy.max_concurrent or (policy.fair and policy.fair.reservation > 0) then
    gate_opened(h.queue)
  end
end

-- How many jobs more may run at once in a queue.
local function room_of(queue)
  local most = policy_of(queue).max_concurrent
  return most and most - held_now('q:' .. queue) or math.huge
end
