package watcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/prometheus/client_golang/prometheus"
)

// eventually waits until ok holds; it is asked again after each change.
func eventually(t *testing.T, changes <-chan struct{}, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-changes:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

// start runs a source until the test ends, and returns a channel that has something after each change.
func start(t *testing.T, s Source) <-chan struct{} {
	t.Helper()
	changes := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx, func() {
			select {
			case changes <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return changes
}

func ready(s Source) func() bool {
	return func() bool {
		_, ok := s.Objects()
		return ok
	}
}

func testOptions(log *slog.Logger) Options {
	return Options{Cluster: "east", Version: "v1.2.3", Log: log, Metrics: NewMetrics(nil)}
}

// fakeAPI is the source of a cluster that is not there.
func fakeAPI(t *testing.T, client kubernetes.Interface, log *slog.Logger) *API {
	t.Helper()
	a := &API{o: testOptions(log), identity: new(identity)}
	c := &connection{}
	c.prepare(client, a.o, a.identity)
	a.use(c)
	return a
}

// A safeBuffer collects log lines of several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func textLog() (*slog.Logger, *safeBuffer) {
	b := new(safeBuffer)
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func TestAPIFollowsChanges(t *testing.T) {
	log, _ := textLog()
	client := fake.NewClientset(
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1"}},
		&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "sallyport"}},
	)
	a := fakeAPI(t, client, log)
	if _, ok := a.Objects(); ok {
		t.Error("there are objects before Run")
	}
	changes := start(t, a)
	eventually(t, changes, "synced", ready(a))
	c, _ := a.Objects()
	if c.Name != "east" || len(c.Services) != 1 || len(c.Nodes) != 1 || len(c.Namespaces) != 1 || len(c.EndpointSlices) != 1 || len(c.Ingresses) != 1 || len(c.IngressClasses) != 1 {
		t.Errorf("got %+v", c)
	}

	services := client.CoreV1().Services("shop")
	if _, err := services.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "api"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, changes, "two Services", func() bool { c, _ := a.Objects(); return len(c.Services) == 2 })
	if err := services.Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, changes, "only api", func() bool {
		c, _ := a.Objects()
		return len(c.Services) == 1 && c.Services[0].Name == "api"
	})
}

// refuse answers every list and watch of a resource with the error.
func refuse(client *fake.Clientset, resource string, err error) {
	client.PrependReactor("list", resource, func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, err })
}

func TestAPIDeniedKindsStopNoOther(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		log  string
	}{
		{"403", apierrors.NewForbidden(schema.GroupResource{Resource: "ingresses"}, "", errors.New("no")), "kind denied by the API server"},
		{"404", apierrors.NewNotFound(schema.GroupResource{Resource: "ingresses"}, ""), "kind unknown to the API server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log, lines := textLog()
			client := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
			refuse(client, "ingresses", tt.err)
			a := fakeAPI(t, client, log)
			a.current.Load().patience = 0
			eventually(t, start(t, a), "synced", ready(a))
			if c, _ := a.Objects(); len(c.Services) != 1 || len(c.Ingresses) != 0 {
				t.Errorf("got %+v", c)
			}
			if !strings.Contains(lines.String(), tt.log) || !strings.Contains(lines.String(), "kind=Ingress") {
				t.Errorf("log lacks %q: %s", tt.log, lines)
			}
		})
	}
}

// TestAPIStartingRefuses has an API server that refuses at first, as one does that has not read the roles: nothing may be
// handed out until it is sure of itself.
func TestAPIStartingRefuses(t *testing.T) {
	log, lines := textLog()
	client := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
	var started atomic.Bool
	client.PrependReactor("list", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		return !started.Load(), nil, apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("role not found"))
	})
	a := fakeAPI(t, client, log)
	changes := start(t, a)
	eventually(t, tick(t), "the refusal is logged", func() bool { return strings.Contains(lines.String(), "kind=Service") })
	for _, k := range a.current.Load().kinds {
		if k.name != "Service" {
			eventually(t, changes, k.name+" is read", k.informer.HasSynced)
		}
	}
	if c, ok := a.Objects(); ok {
		t.Errorf("there are objects without Services: %+v", c)
	}
	started.Store(true)
	eventually(t, changes, "synced", ready(a))
	if c, _ := a.Objects(); len(c.Services) != 1 {
		t.Errorf("got %+v", c)
	}
}

func TestRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusal
		var denials atomic.Int32
		refuse := func() { r.refuse(http.StatusForbidden, denialPatience, func() { denials.Add(1) }) }
		expect := func(code int, count int32) {
			t.Helper()
			synctest.Wait()
			if got := r.denied(); got != code || denials.Load() != count {
				t.Errorf("denied %d, called %d times; want %d, %d", got, denials.Load(), code, count)
			}
		}
		refuse()
		time.Sleep(denialPatience - time.Nanosecond)
		refuse()
		expect(0, 0)
		r.interrupt() // it starts again
		time.Sleep(time.Second)
		refuse()
		time.Sleep(denialPatience - time.Nanosecond)
		expect(0, 0)
		time.Sleep(time.Nanosecond)
		expect(http.StatusForbidden, 1)
		r.interrupt() // no answer does not mean that it is permitted
		refuse()
		time.Sleep(denialPatience)
		expect(http.StatusForbidden, 1)
		if !r.permit() || r.permit() {
			t.Error("permit does not say that it was denied, or says it twice")
		}
		expect(0, 1)
	})
}

// TestAPIExecPluginFails has a plugin that gives no credentials: no request is sent, and the reason must not be lost.
func TestAPIExecPluginFails(t *testing.T) {
	log, lines := textLog()
	plugin := &clientcmdapi.ExecConfig{Command: "false", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}
	a, err := NewAPI(&rest.Config{Host: "https://127.0.0.1:1", ExecProvider: plugin}, testOptions(log))
	if err != nil {
		t.Fatal(err)
	}
	start(t, a)
	eventually(t, tick(t), "the plugin's failure is logged", func() bool { return strings.Contains(lines.String(), "executable false failed") })
}

// TestAPIWaitsForPermittedKinds holds back the Nodes: nothing may be handed out, or traffic would be planned without them.
func TestAPIWaitsForPermittedKinds(t *testing.T) {
	log, lines := textLog()
	client := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
	refuse(client, "nodes", apierrors.NewServiceUnavailable("starting"))
	a := fakeAPI(t, client, log)
	changes := start(t, a)
	eventually(t, changes, "the Services are read", func() bool { return kindOf(t, a, "Service").informer.HasSynced() })
	eventually(t, tick(t), "the failure is logged", func() bool { return strings.Contains(lines.String(), "kind=Node") })
	if c, ok := a.Objects(); ok {
		t.Errorf("there are objects without Nodes: %+v", c)
	}
}

// kindOf returns what watches a kind.
func kindOf(t *testing.T, a *API, name string) *kind {
	t.Helper()
	for _, k := range a.current.Load().kinds {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("no kind %s", name)
	return nil
}

// tick has something often, for conditions that no change announces.
func tick(t *testing.T) <-chan struct{} {
	c := make(chan struct{})
	ticker := time.NewTicker(5 * time.Millisecond)
	ctx := t.Context()
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			select {
			case <-ctx.Done():
				return
			case c <- struct{}{}:
			}
		}
	}()
	return c
}

// TestAPICacheIsSlim puts everything into objects that clusters put there, and looks at what is kept.
func TestAPICacheIsSlim(t *testing.T) {
	meta := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: "1",
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
			OwnerReferences: []metav1.OwnerReference{{Name: "owner"}}, Finalizers: []string{"x"},
			Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "{}", "keep": "me"},
			Labels:      map[string]string{corev1.LabelTopologyZone: "a", discoveryv1.LabelServiceName: "web", "team": "shop"}}
	}
	node := &corev1.Node{ObjectMeta: meta("", "n1"),
		Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}, ProviderID: "x",
			Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Value: "1700000000", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{
			Images:     []corev1.ContainerImage{{Names: []string{"big"}}},
			Capacity:   corev1.ResourceList{"cpu": {}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}},
			Conditions: []corev1.NodeCondition{{Type: "DiskPressure"}, {Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), Message: "ok"}}}}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta("shop", "web-1"), Endpoints: []discoveryv1.Endpoint{{
		Addresses: []string{"10.244.1.5"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}}},
		NodeName: new("n1"), Zone: new("a"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p", UID: "u", Namespace: "shop"}}}}
	service := &corev1.Service{ObjectMeta: meta("shop", "web"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "web"},
		ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}}}

	log, _ := textLog()
	a := fakeAPI(t, fake.NewClientset(node, slice, service), log)
	eventually(t, start(t, a), "synced", ready(a))
	c, _ := a.Objects()
	if got := c.Services[0]; got.ManagedFields != nil || got.OwnerReferences != nil || got.Finalizers != nil || fmt.Sprint(got.Annotations) != "map[keep:me]" || len(got.Labels) != 3 ||
		got.Spec.Selector != nil || fmt.Sprint(got.Spec.ClusterIPs) != "[10.96.0.1 fd00::1]" || !reflect.DeepEqual(got.Spec.Ports, service.Spec.Ports) {
		t.Errorf("Service %+v", got)
	}
	if got := c.Nodes[0]; fmt.Sprint(got.Labels) != "map[topology.kubernetes.io/zone:a]" || got.Annotations != nil || got.Status.Images != nil || got.Status.Capacity != nil ||
		len(got.Status.Conditions) != 1 || !got.Status.Conditions[0].LastHeartbeatTime.IsZero() || got.Spec.ProviderID != "" || got.Spec.PodCIDRs == nil || got.Status.Addresses == nil ||
		!reflect.DeepEqual(got.Spec.Taints, []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}}) {
		t.Errorf("Node %+v", got)
	}
	if got := c.EndpointSlices[0]; fmt.Sprint(got.Labels) != "map[kubernetes.io/service-name:web]" ||
		fmt.Sprint(got.Endpoints[0].Hints.ForZones) != "[{a}]" || got.Endpoints[0].Hints.ForNodes != nil || *got.Endpoints[0].NodeName != "n1" || *got.Endpoints[0].TargetRef != (corev1.ObjectReference{Kind: "Pod", Name: "p"}) {
		t.Errorf("EndpointSlice %+v", got)
	}
}

func TestSameNode(t *testing.T) {
	node := func(version string, ready corev1.ConditionStatus, heartbeat time.Time) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: version},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, LastHeartbeatTime: metav1.NewTime(heartbeat)}}}}
		slimNode(n)
		return n
	}
	old := node("1", corev1.ConditionTrue, time.Unix(1, 0))
	if !sameNode(old, node("2", corev1.ConditionTrue, time.Unix(2, 0))) {
		t.Error("a heartbeat counts as a change")
	}
	if sameNode(old, node("2", corev1.ConditionFalse, time.Unix(2, 0))) {
		t.Error("Ready to NotReady counts as no change")
	}
	if old.ResourceVersion != "1" {
		t.Error("the cached object was modified")
	}
}

// TestAPIRequests looks at what reaches the server: our name, and protobuf first.
func TestAPIRequests(t *testing.T) {
	type seen struct{ agent, accept string }
	requests := make(chan seen, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case requests <- seen{r.UserAgent(), r.Header.Get("Accept")}:
		default:
		}
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer server.Close()
	registry := prometheus.NewRegistry()
	log, _ := textLog()
	o := testOptions(log)
	o.Metrics = NewMetrics(registry)
	a, err := NewAPI(&rest.Config{Host: server.URL}, o)
	if err != nil {
		t.Fatal(err)
	}
	a.current.Load().patience = 0
	eventually(t, start(t, a), "every kind is denied", ready(a))
	got := <-requests
	if got.agent != "sallyport/v1.2.3" || !strings.HasPrefix(got.accept, "application/vnd.kubernetes.protobuf") {
		t.Errorf("got %+v", got)
	}
	if n := counted(t, registry, "sallyport_api_watch_errors_total"); n < len(a.current.Load().kinds) {
		t.Errorf("%d watch errors were counted, want one for each of %d kinds", n, len(a.current.Load().kinds))
	}
}

// TestAPIServerAway has nobody listen: the informers try again in silence, but we tell, once for all of them.
func TestAPIServerAway(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	registry := prometheus.NewRegistry()
	log, lines := textLog()
	o := testOptions(log)
	o.Metrics = NewMetrics(registry)
	a, err := NewAPI(&rest.Config{Host: server.URL}, o)
	if err != nil {
		t.Fatal(err)
	}
	changes := start(t, a)
	eventually(t, changes, "the failure is seen", func() bool { return strings.Contains(a.Health().LastError, "connection refused") })
	if _, ok := a.Objects(); ok || a.Health().Up {
		t.Errorf("there are objects, or it is up: %+v", a.Health())
	}
	if n := strings.Count(lines.String(), "connection refused"); n != 1 {
		t.Errorf("%d lines tell it: %s", n, lines)
	}
	if n := counted(t, registry, "sallyport_api_requests_failed_total"); n == 0 {
		t.Error("no failed request was counted")
	}
}

// counted sums a counter over its labels.
func counted(t *testing.T, g prometheus.Gatherer, name string) int {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return int(sum)
}

func TestLimitedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := textLog()
		l := &limitedLog{log: log}
		count := func() int { return strings.Count(lines.String(), "\n") }
		for range 100 {
			l.report(errors.New("connection refused"))
		}
		if n := count(); n != 1 {
			t.Errorf("%d lines for one failure that repeats", n)
		}
		l.report(apierrors.NewUnauthorized("who are you"))
		if n := count(); n != 2 {
			t.Errorf("%d lines after another failure", n)
		}
		time.Sleep(repeatAfter)
		l.report(apierrors.NewUnauthorized("who are you"))
		if n := count(); n != 3 {
			t.Errorf("%d lines after a minute", n)
		}
	})
}

func TestDemotedLog(t *testing.T) {
	b := new(safeBuffer)
	log := slog.New(demoted{slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo})}).With("a", 1).WithGroup("g")
	log.Info("chatter")
	log.Warn("trouble")
	if got := b.String(); strings.Contains(got, "chatter") || !strings.Contains(got, "trouble") {
		t.Errorf("got %s", got)
	}
}
