package api

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// client returns a client of a server with that state.
func client(t *testing.T, s *Server, contentType string) kubernetes.Interface {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	c, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInformersFollowAServer(t *testing.T) {
	state := NewState(20, 5, Node("edge", VIP(1000), Pods))
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(contentType, func(t *testing.T) {
			s := NewServer(state)
			f := informers.NewSharedInformerFactory(client(t, s, contentType), 0)
			services, slices := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices()
			updated := make(chan *discoveryv1.EndpointSlice, 1)
			if _, err := slices.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
				UpdateFunc: func(_, o any) { updated <- o.(*discoveryv1.EndpointSlice) },
			}); err != nil {
				t.Fatal(err)
			}
			services.Informer()
			f.Start(t.Context().Done())
			for kind, synced := range f.WaitForCacheSync(t.Context().Done()) {
				if !synced {
					t.Fatalf("%v is not synced", kind)
				}
			}
			all := services.Informer().GetStore().List()
			if len(all) != 20 {
				t.Errorf("got %d services, want 20", len(all))
			}
			s.SetEndpoints(Slice(3, Endpoints(500, 1)))
			select {
			case got := <-updated:
				if a := got.Endpoints[0].Addresses[0]; got.Name != "s00003-slice" || a != "10.240.1.245" {
					t.Errorf("got %s with %s, want s00003-slice with 10.240.1.245", got.Name, a)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the change did not come")
			}
		})
	}
}

func TestListAndGet(t *testing.T) {
	c := client(t, NewServer(NewState(3, 2, Node("a", VIP(0), Pods), Node("b", VIP(1), Pods))), runtime.ContentTypeProtobuf)
	services, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(services.Items) != 3 || services.ResourceVersion == "" {
		t.Errorf("list of services: %v, %d items at %q", err, len(services.Items), services.ResourceVersion)
	}
	nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=b"})
	if err != nil || len(nodes.Items) != 1 || nodes.Items[0].Name != "b" {
		t.Errorf("list of one node: %v, %v", err, nodes)
	}
	if n, err := c.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{}); err != nil || n.Name != "a" {
		t.Errorf("get node a: %v, %v", err, n)
	}
	if _, err := c.CoreV1().Nodes().Get(t.Context(), "c", metav1.GetOptions{}); err == nil {
		t.Error("a node that is not there was found")
	}
	if list, err := c.NetworkingV1().Ingresses("").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("list of ingresses: %v, %v", err, list)
	}
	if _, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a kind that is not served was listed")
	}
}

func TestStateHasNoAddressTwice(t *testing.T) {
	seen := map[string]bool{}
	s := NewState(30_000, 5)
	for i, svc := range s.Services {
		addresses := []string{svc.Spec.ClusterIP, svc.Status.LoadBalancer.Ingress[0].IP}
		if p := svc.Spec.Ports[0].NodePort; p != 0 {
			addresses = append(addresses, fmt.Sprint(p))
		}
		for _, e := range s.Slices[i].Endpoints {
			addresses = append(addresses, e.Addresses...)
		}
		for _, a := range addresses {
			if seen[a] {
				t.Fatalf("service %d: %s is another's, too", i, a)
			}
			seen[a] = true
		}
	}
	if last := VIP(29_999); !VIPs.Contains(last) || !Pods.Contains(Endpoints(150_000, 1)[0]) {
		t.Errorf("%v or the last endpoint lies outside of its range", last)
	}
}

func TestOtherSelectorsSelectAll(t *testing.T) {
	c := client(t, NewServer(NewState(3, 1)), runtime.ContentTypeProtobuf)
	services, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{
		FieldSelector: "spec.clusterIP!=None", LabelSelector: "!service.kubernetes.io/service-proxy-name",
	})
	if err != nil || len(services.Items) != 3 {
		t.Errorf("list as kube-proxy does: %v, %d items, want 3", err, len(services.Items))
	}
}
