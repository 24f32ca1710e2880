package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sallyport/bench/lab/network"
)

// labsFolder holds a folder for each lab. It is neither below /run, which hosts have of their own, nor below /tmp,
// where others could prepare it.
const labsFolder = "/var/lib/sallyport-lab"

func folder(lab string) string { return filepath.Join(labsFolder, lab) }

// makeFolder makes a lab's folder. labsFolder may go meanwhile, with the last of the other labs.
func makeFolder(dir string) (err error) {
	for range 100 {
		if err = os.MkdirAll(dir, 0o755); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return err
}

// A State is what another process can know of a lab.
type State struct {
	// Name is the lab's name.
	Name string `json:"name"`
	// Hosts are the lab's hosts.
	Hosts []*network.Host `json:"hosts"`
	// Kubeconfig is the path of the administrator's kubeconfig. It works in the root namespace and on every host.
	Kubeconfig string `json:"kubeconfig"`
	// Owner is the process that has the lab up; 0 if it crashed.
	Owner int `json:"-"`
}

// Host returns the host of that name, or nil.
func (s *State) Host(name string) *network.Host {
	for _, h := range s.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// save writes s for other processes.
func (s *State) save() error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state of lab %s: %w", s.Name, err)
	}
	path := filepath.Join(folder(s.Name), "state.json")
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("save state of lab %s: %w", s.Name, err)
	}
	return os.Rename(path+".new", path)
}

// Load reads what is known of a lab. The error is os.ErrNotExist if there is no such lab.
func Load(name string) (*State, error) {
	if err := network.CheckName(name); err != nil {
		return nil, err
	}
	s := &State{Name: name}
	text, err := os.ReadFile(filepath.Join(folder(name), "state.json"))
	if err != nil {
		return nil, fmt.Errorf("find lab %s (is it up?): %w", name, err)
	}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read state of lab %s: %w", name, err)
	}
	s.Owner, err = owner(name)
	return s, err
}

// List tells of all labs of this machine, also of those that crashed.
func List() ([]*State, error) {
	entries, err := os.ReadDir(labsFolder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var labs []*State
	for _, e := range entries {
		s, err := Load(e.Name())
		if errors.Is(err, os.ErrNotExist) { // it starts just now, or crashed while it did
			s = &State{Name: e.Name()}
			s.Owner, err = owner(e.Name())
		}
		if err != nil {
			return nil, err
		}
		labs = append(labs, s)
	}
	return labs, nil
}
