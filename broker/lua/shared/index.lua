-- The ready index: jobs that may run, in classes of one shape. A claim looks at the first of each class only.
--
-- "500,512,0,1024" holds jobs of exactly that demand (milli-vCPU, MiB, GPUs, MiB of disk); "~256,256,0,1024" holds
-- jobs of at least that demand and is looked into one by one; what these ask for stands in one hash, so that a look at
-- several is one call.

local PRIORITY = 2 ^ 40          -- score = priority * 2^40 + order of arrival, exact in a double
local EXACT_CLASSES, CLASSES = 192, 256
local GRID = {4, 4, 4, 4}        -- ratio of the coarse classes in each dimension

local shapes, shapes_size = {}, 0
local function shape(class)
  local s = shapes[class]
  if not s then
    local mark, c, m, g, d = string.match(class, '^(~?)(%d+),(%d+),(%d+),(%d+)$')
    s = {tonumber(c), tonumber(m), tonumber(g), tonumber(d), exact = mark == ''}
    if shapes_size > 4096 then shapes, shapes_size = {}, 0 end
    shapes[class], shapes_size = s, shapes_size + 1
  end
  return s
end

local function floor_to_grid(x, ratio)
  local g = 1
  if x < 1 then return 0 end
  while g * ratio <= x do g = g * ratio end
  return g
end

local function classify(queue, demand)
  local exact = table.concat(demand, ',')
  local counts = K.counts(queue)
  if redis.call('HEXISTS', counts, exact) == 1 then return exact end
  local size = redis.call('HLEN', counts)
  if size < EXACT_CLASSES then return exact end
  local coarse = {}
  for i = 1, 4 do coarse[i] = num(floor_to_grid(tonumber(demand[i]), GRID[i])) end
  coarse = '~' .. table.concat(coarse, ',')
  if size < CLASSES - 1 or redis.call('HEXISTS', counts, coarse) == 1 then return coarse end
  return '~0,0,0,0'
end

local function fits(need, free)
  return need[1] <= free[1] and need[2] <= free[2] and need[3] <= free[3] and need[4] <= free[4]
end

local function index_add(queue, class, id, score, exact)
  redis.call('ZADD', K.class(queue, class), score, id)
  if class ~= exact then redis.call('HSET', K.demands(queue), id, exact) end
  redis.call('ZADD', K.heads(queue), 'LT', score, class)
  redis.call('HINCRBY', K.counts(queue), class, 1)
end

local function index_remove(queue, class, id)
  local z, heads, counts = K.class(queue, class), K.heads(queue), K.counts(queue)
  if redis.call('ZREM', z, id) == 0 then return false end
  local first = redis.call('ZRANGE', z, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', heads, first[2], class) else redis.call('ZREM', heads, class) end
  if redis.call('HINCRBY', counts, class, -1) <= 0 then redis.call('HDEL', counts, class) end
  if not shape(class).exact then redis.call('HDEL', K.demands(queue), id) end
  return true
end
