package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestVerdict feeds results (+ success, - failure); in the outcome an upper-case letter is one that counts.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name             string
		success, failure int32
		in, want         string
	}{
		{"defaults of a zero probe", 0, 0, "+-+", "YNY"},
		{"three failures", 1, 3, "+--+---", "YnnYnnN"},
		{"failures go on counting", 1, 2, "---", "nNN"},
		{"two successes", 2, 1, "-+-++", "NyNyY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVerdict(&corev1.Probe{SuccessThreshold: tt.success, FailureThreshold: tt.failure})
			var got strings.Builder
			for _, c := range tt.in {
				mark := "n"
				if c == '+' {
					mark = "y"
				}
				if v.observe(c == '+') {
					mark = strings.ToUpper(mark)
				}
				got.WriteString(mark)
			}
			if got.String() != tt.want {
				t.Errorf("%s gives %s, want %s", tt.in, got.String(), tt.want)
			}
		})
	}
}

// TestWatchProbe records at which second after the start each probe runs. The container answers from second 5 on.
func TestWatchProbe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		probe corev1.Probe
		eager bool
		until time.Duration
		want  string // times of checks; reports in brackets
	}{
		{"by period", corev1.Probe{InitialDelaySeconds: 2, PeriodSeconds: 4}, false, 11 * time.Second, "2s [down] 6s [up] 10s [up]"},
		{"threshold", corev1.Probe{PeriodSeconds: 2, FailureThreshold: 3}, false, 7 * time.Second, "0s 2s 4s [down] 6s [up]"},
		{"eager until it works", corev1.Probe{InitialDelaySeconds: 4, PeriodSeconds: 10}, true, 16 * time.Second,
			"4s [down] 4.1s [down] 4.2s [down] 4.3s [down] 4.4s [down] 4.5s [down] 4.6s [down] 4.7s [down] 4.8s [down] 4.9s [down] 5s [up] 15s [up]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.until)
				defer cancel()
				start := time.Now()
				var got []string
				check := func(context.Context) error {
					got = append(got, time.Since(start).String())
					if time.Since(start) < 5*time.Second {
						return errors.New("not yet")
					}
					return nil
				}
				report := func(err error) bool {
					got = append(got, map[bool]string{true: "[up]", false: "[down]"}[err == nil])
					return true
				}
				watchProbe(ctx, newSchedule(&tt.probe, tt.eager), newVerdict(&tt.probe), check, report)
				if got := strings.Join(got, " "); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			})
		})
	}
}

func TestHTTPRequest(t *testing.T) {
	to := target{podIP: "10.1.0.2", spec: &corev1.Container{Name: "main", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
	for _, tt := range []struct {
		name   string
		action corev1.HTTPGetAction
		want   string
	}{
		{"by name", corev1.HTTPGetAction{Port: intstr.FromString("web"), Path: "/healthz?x=1"}, "http://10.1.0.2:8080/healthz?x=1 host 10.1.0.2:8080"},
		{"by number", corev1.HTTPGetAction{Port: intstr.FromInt32(443), Scheme: "HTTPS"}, "https://10.1.0.2:443/ host 10.1.0.2:443"},
		{"host header", corev1.HTTPGetAction{Port: intstr.FromInt32(80), HTTPHeaders: []corev1.HTTPHeader{{Name: "host", Value: "a.example"}}},
			"http://10.1.0.2:80/ host a.example"},
		{"another host", corev1.HTTPGetAction{Port: intstr.FromInt32(80), Host: "fd00::1"}, "http://[fd00::1]:80/ host [fd00::1]:80"},
		{"no such port", corev1.HTTPGetAction{Port: intstr.FromString("admin")}, `container "main" has no port named "admin"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := httpRequest(t.Context(), &tt.action, to)
			got := fmt.Sprint(err)
			if err == nil {
				got = req.URL.String() + " host " + req.Host
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
