package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eagerPeriod is how often a container is probed until a probe first succeeds. The probe's own period would make
// tests wait for nothing.
const eagerPeriod = 100 * time.Millisecond

// verdict counts equal results in a row, as successThreshold and failureThreshold ask.
type verdict struct {
	success, failure int32
	last             bool
	run              int32
}

func newVerdict(p *corev1.Probe) *verdict {
	return &verdict{success: max(1, p.SuccessThreshold), failure: max(1, p.FailureThreshold)}
}

// observe records one result and says whether it has come often enough in a row to count.
func (v *verdict) observe(ok bool) (decided bool) {
	if ok != v.last {
		v.last, v.run = ok, 0
	}
	v.run++
	if ok {
		return v.run >= v.success
	}
	return v.run >= v.failure
}

// schedule is when a probe runs.
type schedule struct {
	delay, period time.Duration
	eager         bool // until the first success, every eagerPeriod
}

func newSchedule(p *corev1.Probe, eager bool) schedule {
	return schedule{
		delay:  time.Duration(p.InitialDelaySeconds) * time.Second,
		period: time.Duration(max(1, p.PeriodSeconds)) * time.Second,
		eager:  eager,
	}
}

// watchProbe runs check on schedule and reports every result that meets its threshold, until ctx ends or report
// returns false.
func watchProbe(ctx context.Context, s schedule, v *verdict, check func(context.Context) error, report func(error) bool) {
	wait := s.delay
	for sleep(ctx, wait) {
		err := check(ctx)
		if ctx.Err() != nil {
			return
		}
		if v.observe(err == nil) && !report(err) {
			return
		}
		s.eager = s.eager && err != nil
		wait = s.period
		if s.eager {
			wait = min(s.period, eagerPeriod)
		}
	}
}

// sleep waits for d and says whether it passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// prober performs the actions of probes and hooks from the node, as kubelet does.
type prober struct {
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	client *http.Client
}

// newProber returns a prober whose connections start in the node's namespace.
func newProber(node netns.NsHandle) *prober {
	p := &prober{dial: dialerIn(node)}
	p.client = &http.Client{
		Transport: &http.Transport{
			DialContext:       p.dial,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // as kubelet: HTTPGetAction.scheme
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p
}

// dialerIn returns a function that dials from a network namespace.
func dialerIn(ns netns.NsHandle) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = inNetNS(ns, func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

// target is the container that an action addresses.
type target struct {
	spec    *corev1.Container
	podIP   string
	process *process
	images  imageTable
}

// check performs a probe once, within its timeoutSeconds.
func (p *prober) check(ctx context.Context, probe *corev1.Probe, t target) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(1, probe.TimeoutSeconds))*time.Second)
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		return p.httpGet(ctx, probe.HTTPGet, t)
	case probe.TCPSocket != nil:
		return p.tcpSocket(ctx, probe.TCPSocket, t)
	case probe.Exec != nil:
		return t.exec(ctx, probe.Exec)
	}
	return errors.New("probe has no action that the lab's node agent supports")
}

// httpGet succeeds with a status from 200 to 399 (HTTPGetAction).
func (p *prober) httpGet(ctx context.Context, a *corev1.HTTPGetAction, t target) error {
	req, err := httpRequest(ctx, a, t)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // part of a message, complete or not
	return fmt.Errorf("GET %s: status %d: %s", req.URL, resp.StatusCode, body)
}

func httpRequest(ctx context.Context, a *corev1.HTTPGetAction, t target) (*http.Request, error) {
	port, err := t.port(a.Port)
	if err != nil {
		return nil, err
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + t.address(a.Host, port) + "/" + strings.TrimPrefix(a.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "kube-probe/sallyport-lab")
	req.Header.Set("Accept", "*/*")
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	return req, nil
}

func (p *prober) tcpSocket(ctx context.Context, a *corev1.TCPSocketAction, t target) error {
	port, err := t.port(a.Port)
	if err != nil {
		return err
	}
	conn, err := p.dial(ctx, "tcp", t.address(a.Host, port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// exec runs a command in the container; exit status 0 is success.
func (t target) exec(ctx context.Context, a *corev1.ExecAction) error {
	if len(a.Command) == 0 {
		return errors.New("exec: no command")
	}
	bin, err := t.images.resolve(t.spec.Image, a.Command[0])
	if err != nil {
		return err
	}
	out, err := combinedOutput(ctx, t.process.command(append([]string{bin}, a.Command[1:]...)...))
	if err != nil {
		return fmt.Errorf("exec %q: %w: %.200s", a.Command, err, out)
	}
	return nil
}

// combinedOutput is exec.Cmd's, bounded by ctx: all of the command's process group is killed when ctx ends.
func combinedOutput(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	group := -cmd.Process.Pid
	stop := context.AfterFunc(ctx, func() {
		_ = syscall.Kill(group, syscall.SIGKILL) // it may just have ended
	})
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return []byte(out.String()), err
}

func (t target) address(host string, port int) string {
	if host == "" {
		host = t.podIP
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// port resolves the number or name of a container port.
func (t target) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, cp := range t.spec.Ports {
		if cp.Name == p.StrVal {
			return int(cp.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("container %q has no port named %q", t.spec.Name, p.StrVal)
}
