package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"sallyport/bench/lab/cluster"
)

const webSockets = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: sockets}
spec:
  replicas: 2
  selector: {matchLabels: {app: sockets}}
  template:
    metadata: {labels: {app: sockets}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: sockets
        image: websocket
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: sockets}
spec: {type: NodePort, selector: {app: sockets}, ports: [{port: 80, targetPort: 8080, nodePort: 30095}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: sockets}
spec:
  ingressClassName: sallyport
  tls: [{hosts: [one.sockets.example.com], secretName: one}]
  rules:
  - host: one.sockets.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: sockets, port: {number: 80}}}}]}
  - host: clear.sockets.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: sockets, port: {number: 80}}}}]}
---
`

// TestWebSocketEcho sends messages through L7, in clear and by TLS, and by NodePort, and goes on while routes change.
func TestWebSocketEcho(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.Namespace(t)
	s.permitSecrets(t, ns, "one")
	secret, _ := a.secret(t, "one", "one.sockets.example.com")
	s.Apply(t, ns, webSockets+secret)
	s.WaitReady(t, ns, "sockets", 2)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		var open []*websocket.Conn
		for _, at := range []struct{ url, host string }{
			{fmt.Sprintf("ws://%s/ws", e.host.Addr), "clear.sockets.example.com"},
			{fmt.Sprintf("wss://%s/ws", e.host.Addr), "one.sockets.example.com"},
			{fmt.Sprintf("ws://%s:30095/ws", e.host.Addr), "by-node-port"},
		} {
			var c *websocket.Conn
			cluster.Eventually(t, 10*time.Second, func() (err error) {
				c, err = s.webSocket(a, at.url, at.host)
				return err
			})
			t.Cleanup(func() { _ = c.CloseNow() })
			open = append(open, c)
		}
		s.Apply(t, ns, strings.ReplaceAll(app("other"), "replicas: 3", "replicas: 1")) // a new snapshot
		s.WaitReady(t, ns, "other", 1)
		for i, c := range open {
			for _, message := range []string{"hello", strings.Repeat("long ", 20_000)} {
				if err := echoed(c, message); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
			if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
				t.Errorf("connection %d: the close is not answered: %v", i, err)
			}
		}
		s.Kubectl(t, "delete", "deployment/other", "-n", ns)
	})
}

func (s *site) webSocket(a *authority, url, host string) (*websocket.Conn, error) {
	client := s.client().HTTPClient()
	client.Timeout = 0 // of the whole connection
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{ServerName: host, RootCAs: a.pool()}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: client, Host: host}) //nolint:bodyclose // it is c
	if err == nil {
		c.SetReadLimit(1 << 20)
	}
	return c, err
}

func echoed(c *websocket.Conn, message string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		return err
	}
	_, got, err := c.Read(ctx)
	if err == nil && string(got) != message {
		err = errors.New("another message came back")
	}
	return err
}
