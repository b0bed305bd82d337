-- The ready index: jobs that may run, in classes of one shape. A claim looks at the first of each class only.
--
-- "500,512,0,1024" holds jobs of exactly that demand (milli-vCPU, MiB, GPUs, MiB of disk); "~256,256,0,1024" holds
-- jobs of at least that demand and is looked into one by one; what these ask for stands in one hash, so that a look at
-- several is one call. What else a claim decides on for a class as a whole follows the demand, each part after a bar:
-- "|g=a100" GPUs of that type, "|o" no spot machine, "|t=lic:2,x:1" tokens, "|d=report" a definition with a limit, "|i" inputs on record.
-- So a class whose gate is closed is passed over without a look at its jobs.
--
-- A queue with shares has a lane for each: "<share>/<class>" is where a job stands in its queue, "<queue>/<share>" is
-- the lane's name in keys. Jobs without a share stand in the queue's own lane.

local PRIORITY = 2 ^ 40          -- score = priority * 2^40 + order of arrival, exact in a double
local SHARE_PRIORITY = 2 ^ 39    -- with a share: (9999 - scheduling priority) * 2^39 + order of arrival
local EXACT_CLASSES, CLASSES = 192, 256
local GRID = {4, 4, 4, 4}        -- ratio of the coarse classes in each dimension

local shapes, shapes_size = {}, 0
local function shape(class)
  local s = shapes[class]
  if not s then
    local mark, c, m, g, d, asks = string.match(class, '^(~?)(%d+),(%d+),(%d+),(%d+)(.*)$')
    s = {tonumber(c), tonumber(m), tonumber(g), tonumber(d), exact = mark == '', tokens = {}}
    for key, value in string.gmatch(asks, '|(%a)=?([^|]*)') do
      if key == 'g' then s.gpu_type = value
      elseif key == 'd' then s.definition = value
      elseif key == 'i' then s.inputs = true
      elseif key == 'o' then s.on_demand = true
      else
        for name, n in string.gmatch(value, '([^:,]+):(%d+)') do s.tokens[#s.tokens + 1] = {name, tonumber(n)} end
      end
    end
    s.gated = s.definition ~= nil or #s.tokens > 0
    if shapes_size > 4096 then shapes, shapes_size = {}, 0 end
    shapes[class], shapes_size = s, shapes_size + 1
  end
  return s
end

-- What a class's name says after the demand.
local function asks_of(tokens, definition, gpu_type, inputs, on_demand)
  local asks = gpu_type and '|g=' .. gpu_type or ''
  if on_demand then asks = asks .. '|o' end
  if tokens then
    local each = {}
    for i, token in ipairs(tokens_of(tokens)) do each[i] = token[1] .. ':' .. num(token[2]) end
    asks = asks .. '|t=' .. table.concat(each, ',')
  end
  if definition then asks = asks .. '|d=' .. definition end
  return inputs and asks .. '|i' or asks
end

-- Where a job stands -> the name of its lane in keys, its class, its share if it has one
local function lane_of(queue, place)
  local at = string.find(place, '/', 1, true)
  if not at then return queue, place end
  local share = string.sub(place, 1, at - 1)
  return queue .. '/' .. share, string.sub(place, at + 1), share
end

local function floor_to_grid(x, ratio)
  local g = 1
  if x < 1 then return 0 end
  while g * ratio <= x do g = g * ratio end
  return g
end

local function classify(lane, demand, asks)
  local exact = table.concat(demand, ',') .. asks
  local counts = K.counts(lane)
  if redis.call('HEXISTS', counts, exact) == 1 then return exact end
  local size = redis.call('HLEN', counts)
  if size < EXACT_CLASSES then return exact end
  local coarse = {}
  for i = 1, 4 do coarse[i] = num(floor_to_grid(tonumber(demand[i]), GRID[i])) end
  coarse = '~' .. table.concat(coarse, ',') .. asks
  if size < CLASSES - 1 or redis.call('HEXISTS', counts, coarse) == 1 then return coarse end
  return '~0,0,0,0'
end

-- "a100:2,t4:1" -> {a100 = 2, t4 = 1}
local function types_of(told)
  local types = {}
  for kind, n in string.gmatch(told or '', '([^:,]+):(%d+)') do types[kind] = tonumber(n) end
  return types
end

local function fits(need, free)
  return need[1] <= free[1] and need[2] <= free[2] and need[3] <= free[3] and need[4] <= free[4]
    and (not need.gpu_type or need[3] <= (free.types[need.gpu_type] or 0)) and not (need.on_demand and free.spot)
end

local function index_add(queue, place, id, score, exact)
  local lane, class, share = lane_of(queue, place)
  redis.call('ZADD', K.class(lane, class), score, id)
  if class ~= exact then redis.call('HSET', K.demands(lane), id, exact) end
  redis.call('ZADD', K.heads(lane), 'LT', score, class)
  local first = redis.call('HINCRBY', K.counts(lane), class, 1) == 1
  if share then lane_grew(queue, share, first or class ~= exact) end
end

local function index_remove(queue, place, id)
  local lane, class, share = lane_of(queue, place)
  local z, heads, counts = K.class(lane, class), K.heads(lane), K.counts(lane)
  if redis.call('ZREM', z, id) == 0 then return false end
  local first = redis.call('ZRANGE', z, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', heads, first[2], class) else redis.call('ZREM', heads, class) end
  if redis.call('HINCRBY', counts, class, -1) <= 0 then redis.call('HDEL', counts, class) end
  if not shape(class).exact then redis.call('HDEL', K.demands(lane), id) end
  if share then lane_shrank(queue, share) end
  return true
end
