// Package e2e proves Sallyport on a real cluster: the API server, controllers and kube-proxies of the lab, pods as
// processes, clients on a host of their own. It has tests only.
//
// Three edges serve the same cluster for the whole run: edge-1 with reach auto, edge-2 with reach nodes, both by
// iptables; edge-3 is started and cleaned up by the tests that ask for it.
package e2e
