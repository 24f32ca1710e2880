package watcher

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"sallyport/watcher/objects"
)

// secretPatience is how long Objects wait for a Secret that is wanted anew: long enough for an API server that does well,
// and an Ingress that names a new Secret is not first served with another certificate.
const secretPatience = time.Second

// secrets watches the Secrets that are wanted.
type secrets struct {
	connection *connection

	mu      sync.Mutex
	watches map[objects.Name]*secretWatch // by what they cover: the name, or the namespace and the name, may be empty
}

// A secretWatch watches the Secrets that its kind names.
type secretWatch struct {
	*kind
	stop  func()
	since time.Time
}

// list adds the Secrets that the cluster, which has all other objects, wants. It starts and ends watches by what is
// wanted. ok is false if a Secret may come that is to be waited for.
func (s *secrets) list(all *objects.Cluster) (ok bool) {
	o := s.connection.o.Secrets
	if o.Wanted == nil || o.Access == SecretsNone || o.Access == "" {
		return true
	}
	wanted := o.Wanted(*all)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow(wanted, o.Access)
	if s.pending() {
		return false
	}
	names := make(map[objects.Name]bool, len(wanted))
	for _, n := range wanted {
		names[n] = true
	}
	for _, covers := range slices.SortedFunc(maps.Keys(s.watches), compareNames) {
		w := s.watches[covers]
		all.Denied = w.addDenial(all.Denied)
		for _, o := range w.informer.GetStore().List() {
			secret := o.(*corev1.Secret)
			if secret.Type == corev1.SecretTypeTLS && names[objects.Name{Namespace: secret.Namespace, Name: secret.Name}] {
				all.Secrets = append(all.Secrets, secret)
			}
		}
	}
	return true
}

func compareNames(a, b objects.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// coverage is what a watch covers that brings the Secret.
func coverage(secret objects.Name, access string) objects.Name {
	switch access {
	case SecretsNamed:
		return secret
	case SecretsNamespaces:
		return objects.Name{Namespace: secret.Namespace}
	default:
		return objects.Name{}
	}
}

// watchSecrets begins a watch.
func (c *connection) watchSecrets(covers objects.Name) *secretWatch {
	log := c.o.Log.With("kind", "Secret", "namespace", covers.Namespace, "name", covers.Name)
	k := &kind{name: "Secret", secrets: covers, log: &limitedLog{log: log}}
	k.same = func(old, next any) bool {
		return reflect.DeepEqual(old.(*corev1.Secret).Data, next.(*corev1.Secret).Data)
	}
	selector := fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS))
	if covers.Name != "" {
		selector = fields.OneTermEqualSelector("metadata.name", covers.Name)
	}
	inform(c, k, &corev1.Secret{}, c.client.CoreV1().Secrets(covers.Namespace), selector.String(), slimSecret)
	stop := c.launch(k)
	patience := time.AfterFunc(secretPatience, c.notify)
	return &secretWatch{kind: k, since: time.Now(), stop: func() {
		patience.Stop()
		stop()
	}}
}

// follow makes the watches that are wanted, and ends the others.
func (s *secrets) follow(wanted []objects.Name, access string) {
	due := make(map[objects.Name]bool, len(wanted))
	for _, name := range wanted {
		if name.Namespace == "" || name.Name == "" {
			continue // it would cover more
		}
		covers := coverage(name, access)
		due[covers] = true
		if s.watches[covers] == nil {
			s.watches[covers] = s.connection.watchSecrets(covers)
		}
	}
	for covers, w := range s.watches {
		if !due[covers] {
			w.stop()
			delete(s.watches, covers)
		}
	}
}

// pending says whether there is a Secret to wait for.
func (s *secrets) pending() bool {
	complete := s.connection.complete.Load()
	for _, w := range s.watches {
		if !w.settled() && (!complete || time.Since(w.since) < secretPatience) {
			return true
		}
	}
	return false
}

// addUnread adds what is denied and was never read.
func (s *secrets) addUnread(all []objects.Denial) []objects.Denial {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watches {
		all = w.addUnread(all)
	}
	return all
}

// up says whether all are being watched that may be.
func (s *secrets) up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watches {
		if !w.established.Load() && w.refusal.denied() == 0 {
			return false
		}
	}
	return true
}
