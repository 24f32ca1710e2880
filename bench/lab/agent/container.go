package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Delays before a container that ended is started again. kubelet's (10 s to 5 min) are too long for tests.
const (
	firstBackOff  = 200 * time.Millisecond
	lastBackOff   = 10 * time.Second // also how long a container must run for the next delay to be the first again
	configBackOff = time.Second      // the longest when only configuration is missing: it may come at any time
)

// container runs one container of a pod: starts its process, probes it, starts it again as restartPolicy asks, and
// stops it gracefully.
type container struct {
	w      *podWorker
	spec   *corev1.Container
	status *corev1.ContainerStatus // guarded by w.mu
	log    *containerLog
	always bool // restart even after success
	never  bool // restart not even after failure
}

// run returns when the container has ended for good, by its restart policy or because the pod is being stopped.
func (c *container) run(stop stopping) {
	for delay := firstBackOff; !c.completed() && stop.term.Err() == nil; delay = min(2*delay, lastBackOff) {
		began := time.Now()
		p, err := c.start(stop.term)
		if err != nil {
			if c.refuse(err) == reasonConfig {
				delay = min(delay, configBackOff)
			}
			sleep(stop.term, delay)
			continue
		}
		c.supervise(p, stop)
		c.ended(p)
		if time.Since(began) > lastBackOff {
			delay = firstBackOff
		}
		if !c.completed() && stop.term.Err() == nil {
			c.backOff(stop.term, delay)
		}
	}
}

// completed says whether the container has ended and its policy lets it rest. The status may be that of an earlier
// agent.
func (c *container) completed() bool {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	t := c.status.State.Terminated
	return t != nil && (c.never || t.ExitCode == 0 && !c.always)
}

// succeeded says whether the container has ended with exit status 0.
func (c *container) succeeded() bool {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	t := c.status.State.Terminated
	return t != nil && t.ExitCode == 0
}

// startError is a failure to start a container: a reason as kubelet's users know it, and the cause.
type startError struct {
	reason string
	cause  error
}

// Error gives the cause.
func (e *startError) Error() string { return e.cause.Error() }

// Unwrap gives the cause.
func (e *startError) Unwrap() error { return e.cause }

// reasonConfig is the reason of a container whose configuration is missing or asks for what there is not.
const reasonConfig = "CreateContainerConfigError"

func (c *container) start(ctx context.Context) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	spec, err := c.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if spec.output, err = c.log.begin(); err != nil {
		return nil, &startError{"CreateContainerError", err}
	}
	defer spec.output.Close()
	p, err := c.w.launcher.start(spec)
	if err != nil {
		c.endLog()
		return nil, &startError{"RunContainerError", err}
	}
	c.set(func(s *corev1.ContainerStatus) {
		s.ContainerID = fmt.Sprintf("lab://%s-%s-%d", shortUID(c.w.uid), c.spec.Name, s.RestartCount)
		s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
		s.Started = new(c.spec.StartupProbe == nil)
		s.Ready = *s.Started && c.spec.ReadinessProbe == nil
	})
	c.w.event(corev1.EventTypeNormal, "Started", "Started container %s as process %d", c.spec.Name, p.cmd.Process.Pid)
	return p, nil
}

// prepare computes what to run.
func (c *container) prepare(ctx context.Context) (processSpec, error) {
	if err := checkSupported(c.w.spec, c.spec); err != nil {
		return processSpec{}, &startError{reasonConfig, err}
	}
	from := c.w.contents()
	env, err := containerEnv(ctx, c.spec, from)
	if err != nil {
		return processSpec{}, &startError{reasonConfig, err}
	}
	mounts, err := c.w.volumes.mounts(ctx, c.spec, from)
	if err != nil {
		return processSpec{}, &startError{reasonConfig, err}
	}
	if _, err := c.w.images.program(c.spec.Image); err != nil {
		return processSpec{}, &startError{"ErrImagePull", err}
	}
	argv, err := c.w.images.commandLine(c.spec, env.values)
	if err != nil {
		return processSpec{}, &startError{"RunContainerError", err}
	}
	dir := path.Join("/", c.spec.WorkingDir) // an image without a WORKDIR starts in the root
	if _, err := os.Stat(dir + "/."); err != nil && !covered(dir, mounts) {
		return processSpec{}, &startError{"CreateContainerError", fmt.Errorf("container %q: workingDir: %w", c.spec.Name, err)}
	}
	_, _, netNS := c.w.surroundings()
	return processSpec{
		netNS: netNS, hostname: from.facts.hostname, dir: dir, argv: argv, env: env.list(), root: c.w.rootDir(), mounts: mounts,
	}, nil
}

// covered says whether a mount may bring the folder.
func covered(dir string, mounts []bindMount) bool {
	return slices.ContainsFunc(mounts, func(m bindMount) bool {
		rest, inside := strings.CutPrefix(dir, path.Clean(m.Target))
		return inside && (rest == "" || rest[0] == '/')
	})
}

// refuse tells why the container cannot be started, and returns the reason.
func (c *container) refuse(err error) string {
	reason := "CreateContainerError"
	if start, ok := errors.AsType[*startError](err); ok {
		reason = start.reason
	}
	c.set(func(s *corev1.ContainerStatus) {
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: err.Error()}}
	})
	c.w.event(corev1.EventTypeWarning, "Failed", "Error: %v", err)
	return reason
}

// supervise returns when the process has ended, by itself or because the pod stops or a probe found it dead.
func (c *container) supervise(p *process, stop stopping) {
	probing, endProbing := context.WithCancel(stop.kill)
	unhealthy := make(chan error, 1)
	var probes sync.WaitGroup
	probes.Go(func() { c.probe(probing, p, unhealthy) })
	defer probes.Wait()
	defer endProbing()
	select {
	case <-p.done:
	case <-stop.term.Done():
		c.shutDown(stop.kill, p)
	case err := <-unhealthy:
		c.w.event(corev1.EventTypeWarning, "Killing", "Container %s will be restarted: %v", c.spec.Name, err)
		grace, cancel := context.WithTimeout(stop.kill, c.w.gracePeriod())
		defer cancel()
		c.shutDown(grace, p)
	}
}

// shutDown stops the process as the pod lifecycle documentation describes: preStop, SIGTERM, and SIGKILL when grace
// ends, whichever step it is at.
func (c *container) shutDown(grace context.Context, p *process) {
	grace, cancel := context.WithCancel(grace)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel() // nothing is left that preStop could prepare
		case <-grace.Done():
		}
	}()
	c.preStop(grace, p)
	c.signal(p, syscall.SIGTERM)
	<-grace.Done()
	c.signal(p, syscall.SIGKILL)
	<-p.done
}

func (c *container) signal(p *process, s syscall.Signal) {
	if err := p.signal(s); err != nil {
		c.w.log.Error("signal container", "container", c.spec.Name, "signal", s.String(), "err", err)
	}
}

func (c *container) preStop(grace context.Context, p *process) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	hook := c.spec.Lifecycle.PreStop
	var err error
	switch {
	case hook.Sleep != nil:
		sleep(grace, time.Duration(hook.Sleep.Seconds)*time.Second)
	case hook.HTTPGet != nil:
		err = c.w.prober.httpGet(grace, hook.HTTPGet, c.target(p))
	case hook.Exec != nil:
		err = c.target(p).exec(grace, hook.Exec)
	}
	if err != nil {
		c.w.event(corev1.EventTypeWarning, "FailedPreStopHook", "Container %s: %v", c.spec.Name, err)
	}
}

// ended records how the process ended.
func (c *container) ended(p *process) {
	c.endLog()
	code, signal := p.exitCode()
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	c.set(func(s *corev1.ContainerStatus) {
		t := &corev1.ContainerStateTerminated{
			ExitCode: code, Signal: signal, Reason: reason, FinishedAt: metav1.Now(), ContainerID: s.ContainerID,
		}
		if s.State.Running != nil {
			t.StartedAt = s.State.Running.StartedAt
		}
		s.State = corev1.ContainerState{Terminated: t}
		s.Ready, s.Started = false, new(false)
	})
}

func (c *container) endLog() {
	if err := c.log.end(); err != nil {
		c.w.log.Error("end log of container", "container", c.spec.Name, "err", err)
	}
}

// backOff waits before the next start, or until the pod is stopped.
func (c *container) backOff(term context.Context, delay time.Duration) {
	message := fmt.Sprintf("back-off %v restarting failed container %s", delay, c.spec.Name)
	c.set(func(s *corev1.ContainerStatus) {
		s.LastTerminationState = s.State
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}}
	})
	c.w.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s", c.spec.Name)
	again := sleep(term, delay)
	c.set(func(s *corev1.ContainerStatus) {
		if again {
			s.RestartCount++
			return
		}
		s.State, s.LastTerminationState = s.LastTerminationState, corev1.ContainerState{}
	})
}

// set changes the container's status and has it published.
func (c *container) set(change func(*corev1.ContainerStatus)) {
	c.w.update(func() { change(c.status) })
}

func (c *container) target(p *process) target {
	_, facts, _ := c.w.surroundings()
	return target{spec: c.spec, podIP: facts.podIPs[0].String(), process: p, images: c.w.images}
}

// probe runs the container's probes until ctx ends, and sends to unhealthy when the container must be restarted.
func (c *container) probe(ctx context.Context, p *process, unhealthy chan<- error) {
	if !c.awaitStartup(ctx, p, unhealthy) {
		return
	}
	var probes sync.WaitGroup
	defer probes.Wait()
	if probe := c.spec.ReadinessProbe; probe != nil {
		probes.Go(func() {
			c.watch(ctx, "Readiness", probe, p, func(err error) bool {
				c.setReady(err == nil)
				return true
			})
		})
	}
	if probe := c.spec.LivenessProbe; probe != nil {
		probes.Go(func() {
			c.watch(ctx, "Liveness", probe, p, func(err error) bool { return c.alive(err, "liveness", unhealthy) })
		})
	}
}

// awaitStartup runs the startup probe, before which the others do not run. It returns whether the container started.
func (c *container) awaitStartup(ctx context.Context, p *process, unhealthy chan<- error) (started bool) {
	probe := c.spec.StartupProbe
	if probe == nil {
		return true
	}
	c.watch(ctx, "Startup", probe, p, func(err error) bool {
		started = c.alive(err, "startup", unhealthy)
		return false
	})
	if started {
		c.set(func(s *corev1.ContainerStatus) {
			s.Started = new(true)
			s.Ready = c.spec.ReadinessProbe == nil
		})
	}
	return started
}

// alive passes a failed probe on to the supervisor, once, and ends the probing.
func (c *container) alive(err error, kind string, unhealthy chan<- error) bool {
	if err != nil {
		unhealthy <- fmt.Errorf("%s probe failed: %w", kind, err)
	}
	return err == nil
}

// watch runs one probe. Failures become an Event at most once per period, and none before the first period is over:
// until then a container may still be starting.
func (c *container) watch(ctx context.Context, kind string, probe *corev1.Probe, p *process, report func(error) bool) {
	s := newSchedule(probe, kind == "Readiness")
	quietUntil := time.Now().Add(s.delay + s.period)
	check := func(ctx context.Context) error {
		err := c.w.prober.check(ctx, probe, c.target(p))
		if now := time.Now(); err != nil && ctx.Err() == nil && !now.Before(quietUntil) {
			quietUntil = now.Add(s.period)
			c.w.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", kind, err)
		}
		return err
	}
	watchProbe(ctx, s, newVerdict(probe), check, report)
}

func (c *container) setReady(ready bool) {
	c.w.mu.Lock()
	same := c.status.Ready == ready
	c.w.mu.Unlock()
	if !same {
		c.set(func(s *corev1.ContainerStatus) { s.Ready = ready })
	}
}
