package watcher

import (
	"errors"
	"path"
	"strings"
	"sync"
	"time"
)

// Health is how a cluster's API server does, or a folder of manifests, for people.
type Health struct {
	Cluster string `json:"cluster,omitempty"` // name in the configuration
	Server  string `json:"server"`            // URL, or path
	// Up says that the API server answers, and that all that may be read is being watched.
	Up bool `json:"up"`
	// LastContact is when the API server last sent something; zero if it never did.
	LastContact time.Time `json:"lastContact,omitzero"`
	// LastError is what keeps requests from being answered, empty if nothing does.
	LastError string `json:"lastError,omitempty"`
	// CredentialExpiry is when the credentials end, zero if they do not say.
	CredentialExpiry time.Time `json:"credentialExpiry,omitzero"`
	// File is the last-good file, empty if there is none; LastGood's, as the two that follow.
	File string `json:"file,omitempty"`
	// Written is when the file was last written, by this process or an earlier one; zero if there is none.
	Written time.Time `json:"written,omitzero"`
	// Stale says that what is served is the file's, or is of before the API server became another cluster's.
	Stale bool `json:"stale,omitempty"`
}

// health is what a connection knows of its API server.
type health struct {
	log *limitedLog

	mu       sync.Mutex
	contact  time.Time
	err      error  // of the last probe, nil if it was answered
	conflict string // says, for people, that the API server is another cluster's
}

// Health returns how the API server does.
func (a *API) Health() Health {
	c := a.current.Load()
	h := c.currentHealth()
	if next := a.next.Load(); next != nil {
		if why := next.unused(); why != "" {
			h.LastError = "kubeconfig has changed, " + next.server() + ": " + why
		}
	}
	return h
}

func (c *connection) currentHealth() Health {
	h := Health{Cluster: c.o.Cluster, Server: c.server(), Up: c.up(), CredentialExpiry: credentialExpiry(c.config)}
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	h.LastContact = c.health.contact
	if c.health.err != nil {
		h.LastError = c.health.err.Error()
	}
	return h
}

// unused says why the connection has not taken over, or is empty if it is not known.
func (c *connection) unused() string {
	if h := c.currentHealth(); h.LastError != "" {
		return h.LastError
	}
	var kinds []string
	for _, d := range c.unread() {
		kinds = append(kinds, strings.TrimRight(d.Kind+" "+path.Join(d.Namespace, d.Name), " "))
	}
	if len(kinds) == 0 {
		return ""
	}
	return "the new credentials may not read " + strings.Join(kinds, ", ")
}

// up says whether the API server answers and all that may be read is being watched.
func (c *connection) up() bool {
	c.health.mu.Lock()
	fails := c.health.err != nil
	c.health.mu.Unlock()
	if fails {
		return false
	}
	for _, k := range c.kinds {
		if !k.established.Load() && k.refusal.denied() == 0 {
			return false
		}
	}
	return c.secrets.up()
}

// showHealth sets the metric.
func (c *connection) showHealth() {
	if c.active.Load() {
		c.o.Metrics.up.WithLabelValues(c.o.label()).Set(truth(c.up()))
	}
}

// contacted takes note that the API server sent something.
func (c *connection) contacted() {
	now := time.Now()
	c.health.mu.Lock()
	c.health.contact = now
	c.health.mu.Unlock()
	if c.active.Load() {
		c.o.Metrics.contact.WithLabelValues(c.o.label()).Set(seconds(now))
	}
}

// requestFailed counts a request; code is the HTTP status code, or "none".
func (c *connection) requestFailed(code string) {
	c.o.Metrics.requestsFailed.WithLabelValues(c.o.label(), code).Inc()
}

// unreached takes note that the API server gives no answer that is of use to anybody.
func (c *connection) unreached(err error) {
	var conflict string
	if errors.Is(err, errOtherCluster) {
		conflict = "the API server " + c.server() + " is of " + err.Error()
	}
	c.health.mu.Lock()
	news := c.health.err == nil || c.health.conflict != conflict
	c.health.err, c.health.conflict = err, conflict
	c.health.mu.Unlock()
	c.health.log.report(err)
	c.showHealth()
	if news {
		c.notify()
	}
}

// reached takes note that the API server answers.
func (c *connection) reached() {
	c.health.mu.Lock()
	was := c.health.err
	c.health.err, c.health.conflict = nil, ""
	c.health.mu.Unlock()
	c.showHealth()
	if was != nil {
		c.health.log.log.Info("API server answers again")
		c.notify()
	}
}

// conflict says, for people, that the API server is another cluster's, or is empty.
func (c *connection) conflict() string {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	return c.health.conflict
}
