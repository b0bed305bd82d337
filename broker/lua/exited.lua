-- exited(node, id, token, id, token, …) -> for each 1, or 0 when the token is stale: the containers of these jobs have
-- ended, and until they are settled, with their outputs uploaded, they hold no more than their disk there. For the
-- placing of gangs: what a node claims, it claims by its own word. May be said again.
-- Keys: job, node, node_jobs; channel duty.
register('exited', function(_, argv)
  local node, out = argv[1], {}
  for i = 2, #argv, 2 do
    local job = K.job(argv[i])
    local h = redis.call('HMGET', job, 'token', 'node', 'mc', 'mem', 'gpu', 'exited')
    local ours = h[1] == argv[i + 1] and h[2] == node
    out[#out + 1] = ours and 1 or 0
    if ours and not h[6] and redis.call('SISMEMBER', K.node_jobs(node), argv[i]) == 1 then
      redis.call('HSET', job, 'exited', 1)
      redis.call('HINCRBY', K.node(node), 'b:exited', 1)
      free_room(node, {h[3], h[4], h[5]})
    end
  end
  return out
end)
