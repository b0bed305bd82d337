-- What a node holds: a job is leased to it, until the lease is given up.
-- `holding` on the record says that what the job takes beside the node's own resources is taken: so it is given back once.

-- The document of an array's child, which its parent has.
local function doc_of(id)
  local parent = array_of(id)
  return parent and redis.call('HGET', K.job(parent), 'doc') or ''
end

local function lease_out(id, node, claim, lease)
  local job = K.job(id)
  local token = redis.call('HINCRBY', job, 'epoch', 1) .. ':' .. claim
  redis.call('ZADD', K.leases, num(now() + lease), id)
  redis.call('SADD', K.node_jobs(node), id)
  become(id, 'STARTING', 'token', token, 'node', node, 'holding', '1')
  redis.call('HDEL', job, 'class', 'passed')
  local h = redis.call('HMGET', job, 'used', 'doc', 'queue', 'created', 'interruptions', 'mc', 'share', 'tokens', 'def')
  take_hold({queue = h[3], mc = tonumber(h[6]) or 0, share = h[7], tokens = h[8], definition = h[9]})
  return {id, token, (tonumber(h[1]) or 0) + 1, h[2] or doc_of(id), h[3], h[4], tonumber(h[5]) or 0}
end

-- unused: it has not come to run, so that tokens which are used up by running come back too.
local function unlease(id, node, unused)
  redis.call('ZREM', K.leases, id)
  redis.call('SREM', K.node_jobs(node), id)
  local h = redis.call('HMGET', K.job(id), 'holding', 'queue', 'mc', 'share', 'tokens', 'def')
  if not h[1] then return end
  redis.call('HDEL', K.job(id), 'holding')
  give_hold({queue = h[2], mc = tonumber(h[3]) or 0, share = h[4], tokens = h[5], definition = h[6]}, not unused)
end
