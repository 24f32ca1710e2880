package status

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sallyport/watcher/model"
)

// ReportingController is the reportingController of our Events.
const ReportingController = "sallyport.io/edge"

// apiVersions are those of the kinds that Events are about.
var apiVersions = map[string]string{
	"Service":       "v1",
	"Node":          "v1",
	"Secret":        "v1",
	"EndpointSlice": "discovery.k8s.io/v1",
	"Ingress":       "networking.k8s.io/v1",
	"IngressClass":  "networking.k8s.io/v1",
}

const (
	maxMessage = 1024 // bytes of Event.message, as the API server has it for events.k8s.io/v1
	maxName    = 253  // bytes of metadata.name (RFC 1123 subdomain)
)

// newEvent makes the Event of a Problem with an object.
func newEvent(p model.Problem, uid, instance string, now time.Time) *corev1.Event {
	at := metav1.NewTime(now)
	namespace := p.Object.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where Kubernetes has the Events of objects without
	}
	message := p.Message
	if p.Field != "" {
		message = p.Field + ": " + message
	}
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: eventName(p, uid)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: apiVersions[p.Object.Kind], Kind: p.Object.Kind,
			Namespace: p.Object.Namespace, Name: p.Object.Name, UID: types.UID(uid),
		},
		Type: corev1.EventTypeWarning, Reason: string(p.Reason), Message: cut(message, maxMessage), Action: "Serve",
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: ReportingController, ReportingInstance: instance,
	}
}

// eventName depends on what the Event says and on nothing else, so that edges, restarts and changes of the leader do not
// multiply it.
func eventName(p model.Problem, uid string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{uid, p.Field, string(p.Reason), p.Message}, "\x00")))
	suffix := "." + hex.EncodeToString(sum[:8])
	return strings.TrimRight(cut(p.Object.Name, maxName-len(suffix)), ".-") + suffix
}

// cut shortens s to at most n bytes, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
