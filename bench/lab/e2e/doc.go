// Package e2e proves Sallyport on a real cluster: the API server, controllers and kube-proxies of the lab, pods as
// processes, clients on a host of their own. It has tests only.
//
// Two edges serve the same cluster for the whole run, by iptables: edge-1 with reach auto, edge-2 with reach nodes. edge-3 is
// started and cleaned up by the tests that ask for it. What a Service may ask of L4 is tried on gates, from edge-4 on: one for
// each dataplane, all at once, in both families.
//
// Deployments are rolled for as long as SALLYPORT_ROLL says, such as 60s; otherwise for 10 s.
package e2e
