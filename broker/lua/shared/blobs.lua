-- Objects of the durable store that do not stay for ever. What is not known here stays.
--
-- Whoever puts an object says so before it does, by the object's name and its head (what tells this very object from any
-- other of the same name), in `blobs_made`:
--   h: head -> 1 of each that was said; an object with another head is somebody else's, and stays
--   f: owner -> ms since when it may be putting or using it: `<id> <token>` of an attempt, as long as that holds its lease;
--      `<id>` of a job, as long as it has not ended; any other for ORPHAN_MS
--   u: ms until when ended jobs keep it
-- The score in `blobs_until` is the first moment at which nobody may need it. A job that ends in a queue where outputs do
-- not expire takes its objects off these lists: they stay. What a person keeps lies in `blobs_pinned` instead, with
--   p: name of a blob that is pinned -> 1 of each that has this object in it
--   s: 1 when it stays also when it is not pinned any more

local ORPHAN_MS = 86400000

-- -> what is known, whether it is pinned
local function blob_of(name)
  local pinned = redis.call('HGET', K.blobs_pinned, name)
  local known = pinned or redis.call('HGET', K.blobs_made, name)
  return known and cjson.decode(known) or nil, pinned and true or false
end

local function blob_known(name, b, pinned)
  if pinned then return redis.call('HSET', K.blobs_pinned, name, cjson.encode(b)) end
  local till = b.u
  for _, since in pairs(b.f) do till = math.max(till, since + ORPHAN_MS) end
  redis.call('HSET', K.blobs_made, name, cjson.encode(b))
  redis.call('ZADD', K.blobs_until, num(till), name)
end

local function blob_unknown(name)
  redis.call('HDEL', K.blobs_made, name)
  redis.call('ZREM', K.blobs_until, name)
end

local function blob_stays(name)
  local b, pinned = blob_of(name)
  if pinned then
    b.s = 1
    blob_known(name, b, true)
  else
    blob_unknown(name)
  end
end

-- What an attempt or a job has put is its outputs and logs now. told: `<ms that they are kept, or -> <name> <name> …`
local function settle_blobs(owner, told)
  local keep, names = string.match(told or '', '^(%S+)(.*)$')
  if not keep then return end
  for name in string.gmatch(names, '%S+') do
    if keep == '-' then
      blob_stays(name)
    else
      local b, pinned = blob_of(name)
      if b and not b.s then
        b.f[owner] = nil
        b.u = math.max(b.u, now() + tonumber(keep))
        blob_known(name, b, pinned)
      end
    end
  end
end

-- An attempt has ended, its job goes on: what it has put is kept until the job ends, and settled then.
local function return_blobs(id, token, told)
  local keep, names = string.match(told or '', '^(%S+)(.*)$')
  if not keep then return end
  if keep == '-' then return settle_blobs(id .. ' ' .. token, told) end
  for name in string.gmatch(names, '%S+') do
    local b, pinned = blob_of(name)
    if b and not b.s then
      b.f[id .. ' ' .. token] = nil
      b.f[id] = now()
      blob_known(name, b, pinned)
    end
  end
  local before = string.match(redis.call('HGET', K.job(id), 'blobs') or '', '^%S+(.*)$') or ''
  redis.call('HSET', K.job(id), 'blobs', keep .. before .. names)
end

local function owner_lives(owner)
  local id, token = string.match(owner, '^(.+) (%S+)$')
  if id then return redis.call('HGET', K.job(id), 'token') == token end
  local state = redis.call('HGET', K.job(owner), 'state')
  return state and state ~= 'SUCCEEDED' and state ~= 'FAILED'
end

-- Whether nobody may need it any more. early: by so many ms sooner, if no job has ended with it.
local function blob_due(name, early)
  local till, b = redis.call('ZSCORE', K.blobs_until, name), blob_of(name)
  if not till or not b then return false end
  local over = now() + (b.u == 0 and early or 0)
  if tonumber(till) > over then return false end
  for owner in pairs(b.f) do
    if owner_lives(owner) then return false end
  end
  return true, b
end
